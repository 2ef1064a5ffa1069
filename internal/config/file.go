package config

// File is a whole configuration file. One file may configure a gateway, a key
// service, an unsealing process, or all of them; each reads only what it needs.
type File struct {
	// Service is the name of the key service, one token of a NATS subject. It
	// stands in the subjects of its requests (keyweir.v1.<service>.<op>).
	// Required.
	Service string `yaml:"service"`
	// Gateway configures "keyweir gateway".
	Gateway *Gateway `yaml:"gateway"`
	// Keysvc configures "keyweir keysvc".
	Keysvc *Keysvc `yaml:"keysvc"`
	// Unseal configures "keyweir unseal".
	Unseal *Unseal `yaml:"unseal"`
	// NATS names the servers that the other sections refer to. At least one.
	NATS map[string]Connection `yaml:"nats"`
	// Telemetry says where logs, metrics and traces go.
	Telemetry Telemetry `yaml:"telemetry"`

	places places
}

// Connection says how to reach one NATS system. Give either a context or the
// other keys.
type Connection struct {
	// URL is one server or several, separated by commas: nats://host:4222,
	// tls://host:4222, ws:// or wss://. No user or password in it.
	URL string `yaml:"url"`
	// Context is a context of the nats CLI, by name or as the path of its file.
	// It excludes every other key of the connection.
	Context string `yaml:"context"`
	// Creds is a credentials file with JWT and seed.
	Creds SecretRef `yaml:"creds"`
	// NKey is a seed file of a user (SU...). It must differ from the identity.
	NKey SecretRef `yaml:"nkey"`
	// User is a user name; it needs password.
	User string `yaml:"user"`
	// Password belongs to user.
	Password SecretRef `yaml:"password"`
	// Token is an authentication token, instead of user and password.
	Token SecretRef `yaml:"token"`
	// TLS has certificates. A tls:// URL alone uses the system's authorities.
	TLS TLS `yaml:"tls"`
	// InboxPrefix replaces _INBOX in reply subjects, where permissions ask for it.
	InboxPrefix string `yaml:"inbox_prefix"`
}

// TLS has the files of a TLS connection, all PEM.
type TLS struct {
	// CA is a file of the certificate authorities that are accepted, instead of
	// the system's.
	CA string `yaml:"ca"`
	// Cert is the client certificate; it needs key.
	Cert string `yaml:"cert"`
	// Key is the file of the private key of cert.
	Key string `yaml:"key"`
	// First starts TLS before the server's greeting; the server must do the same.
	First bool `yaml:"first"`
}

// Telemetry says where logs, metrics and traces go. Neither ever holds a
// payload or a key.
type Telemetry struct {
	// Log goes to standard error.
	Log Log `yaml:"log"`
	// Metrics serves Prometheus metrics, health and readiness over HTTP.
	Metrics Metrics `yaml:"metrics"`
	// OTLP sends metrics and traces to an OpenTelemetry collector.
	OTLP OTLP `yaml:"otlp"`
}

// Log says what is logged and how.
type Log struct {
	// Level is debug, info, warn or error. Default: info.
	Level LogLevel `yaml:"level"`
	// Format is text or json. Default: text.
	Format LogFormat `yaml:"format"`
}

// Metrics serves /metrics, /healthz and /readyz.
type Metrics struct {
	// Listen is host:port, for example 127.0.0.1:9464; a port alone, as in
	// :9464, listens on all addresses. Default: not served.
	Listen string `yaml:"listen"`
}

// OTLP sends metrics and traces by OTLP over HTTP.
type OTLP struct {
	// Endpoint is the collector's URL, http:// or https://, without
	// /v1/traces. A token for it belongs in the environment variable
	// OTEL_EXPORTER_OTLP_HEADERS. Default: nothing is sent.
	Endpoint string `yaml:"endpoint"`
	// TraceRatio is the share, 0 to 1, of new traces that are recorded. A trace
	// that comes with a message keeps its publisher's decision. Default: 0.
	TraceRatio float64 `yaml:"trace_ratio"`
}
