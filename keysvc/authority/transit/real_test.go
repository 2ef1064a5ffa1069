package transit_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// realKeys makes two keys in the engine "transit" of a real server.
func realKeys(t *testing.T, addr, token string, derived bool) []string {
	t.Helper()
	keys := make([]string, 2)
	for i := range keys {
		keys[i] = fmt.Sprintf("keyweir-test-%d-%d", time.Now().UnixNano(), i)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, addr+"/v1/transit/keys/"+keys[i],
			strings.NewReader(fmt.Sprintf(`{"type":"aes256-gcm96","derived":%v}`, derived)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Vault-Token", token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatalf("making a key: %v", err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			t.Fatalf("making a key: status %d; is the engine enabled at transit?", resp.StatusCode)
		}
	}
	return keys
}
