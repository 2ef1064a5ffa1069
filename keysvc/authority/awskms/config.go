package awskms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go/logging"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// Config describes one authority. Only KeyID has no default. It prints and
// marshals redacted: credentials never show.
type Config struct {
	// KeyID is the key of "": a key ID, a key ARN, "alias/NAME" or an alias ARN.
	// A symmetric encryption key. Opened by an ARN, the authority refuses keys
	// outside that ARN's account and region.
	KeyID string
	// Region is the AWS region; "" means the one of an ARN in KeyID, else the
	// SDK's default chain (AWS_REGION, shared configuration).
	Region string
	// Endpoint replaces the endpoint of AWS; "" means the SDK's choice. Plain
	// http is accepted for loopback addresses only: key material crosses it.
	Endpoint string
	// Credentials replaces the SDK's default chain; nil means that chain.
	Credentials aws.CredentialsProvider
	// Limits bound calls; zero fields mean the defaults.
	Limits Limits
	// Logger gets failed calls (debug) and refused answers (warning); nil discards.
	Logger *slog.Logger
	// Client replaces the client made from the fields above. It brings its own
	// endpoint, credentials and retries: of Limits, only CallTimeout applies. It
	// must not log bodies (aws.LogRequestWithBody, aws.LogResponseWithBody).
	Client Client
}

// Limits bound what one call may cost.
type Limits struct {
	AttemptTimeout time.Duration // one HTTP exchange; 0: 5 s
	CallTimeout    time.Duration // one call, attempts and pauses together; 0: 20 s
	MaxAttempts    int           // attempts of one call, the first included; 0: 4
	MaxBackoff     time.Duration // longest pause between two attempts; 0: 2 s
}

func (l Limits) withDefaults() (Limits, error) {
	if l.AttemptTimeout < 0 || l.CallTimeout < 0 || l.MaxAttempts < 0 || l.MaxBackoff < 0 {
		return l, errors.New("negative limit")
	}
	if l.AttemptTimeout == 0 {
		l.AttemptTimeout = 5 * time.Second
	}
	if l.CallTimeout == 0 {
		l.CallTimeout = 20 * time.Second
	}
	if l.MaxAttempts == 0 {
		l.MaxAttempts = 4
	}
	if l.MaxBackoff == 0 {
		l.MaxBackoff = 2 * time.Second
	}
	return l, nil
}

// New makes an authority from c. It reads the SDK's configuration but does not
// ask KMS. A wrong configuration is authority.ErrInvalid, a configuration that
// cannot be read authority.ErrUnavailable.
func New(ctx context.Context, c Config) (*Authority, error) {
	const op = "opening"
	home, err := parseKey(c.KeyID)
	if err != nil {
		return nil, invalid(op, "%v", err)
	}
	limits, err := c.Limits.withDefaults()
	if err != nil {
		return nil, invalid(op, "%v", err)
	}
	a := &Authority{client: c.Client, limits: limits, home: home, log: c.Logger, idle: func() {}}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if a.client == nil {
		if err := a.connect(ctx, c); err != nil {
			return nil, err
		}
	}
	a.life, a.close = context.WithCancel(context.Background())
	return a, nil
}

// connect makes the client and notes its region.
func (a *Authority) connect(ctx context.Context, c Config) error {
	const op = "opening"
	region := c.Region
	if region == "" {
		region = a.home.region
	}
	cfg, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(region), awsconfig.WithLogger(logging.Nop{}))
	if err != nil { // the text can quote the shared configuration
		return fmt.Errorf("awskms: opening: the aws configuration cannot be read: %w", authority.ErrUnavailable)
	}
	if cfg.Region == "" {
		return invalid(op, "no region: give one, open by ARN or set AWS_REGION")
	}
	if a.region = cfg.Region; a.home.region != "" && a.home.region != a.region {
		return invalid(op, "a key in region %s, the authority is in %s", a.home.region, a.region)
	}
	if c.Credentials != nil {
		cfg.Credentials = aws.NewCredentialsCache(c.Credentials)
	}
	if cfg.Credentials != nil {
		cfg.Credentials = markedCredentials{cfg.Credentials}
	}
	transport := newTransport(cfg.HTTPClient, a.limits.AttemptTimeout)
	client := kms.NewFromConfig(cfg, func(o *kms.Options) {
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
		o.HTTPClient = transport
		o.Retryer = newRetryer(a.limits)
		o.ClientLogMode = 0
		o.Logger = logging.Nop{}
	})
	if e := client.Options().BaseEndpoint; e != nil { // Endpoint, or AWS_ENDPOINT_URL and the like
		if err := checkEndpoint(*e); err != nil {
			return invalid(op, "%v", err)
		}
	}
	a.client, a.idle = client, transport.client.CloseIdleConnections
	return nil
}

// markedCredentials marks the errors of the credential chain.
type markedCredentials struct{ aws.CredentialsProvider }

func (m markedCredentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := m.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return aws.Credentials{}, &credentialsError{err}
	}
	return c, nil
}

// String shows everything but the credentials.
func (c Config) String() string {
	return fmt.Sprintf("awskms.Config{KeyID:%q Region:%q Endpoint:%q}", c.KeyID, c.Region, c.Endpoint)
}

// Format prints what String returns under every verb.
func (c Config) Format(f fmt.State, _ rune) { fmt.Fprint(f, c.String()) }

// LogValue logs what String returns.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON marshals what String returns.
func (c Config) MarshalJSON() ([]byte, error) { return json.Marshal(c.String()) }
