package cli

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/keyweir/keyweir/internal/config"
	"github.com/keyweir/keyweir/internal/telemetry"
)

// setupTelemetry makes the logs, metrics and traces of a service.
func setupTelemetry(ctx context.Context, u *ui, c config.Telemetry, service string) (*telemetry.Telemetry, func() error, error) {
	var level slog.Level
	if c.Log.Level != "" {
		if err := level.UnmarshalText([]byte(c.Log.Level)); err != nil {
			return nil, nil, fmt.Errorf("reading log level: %w", err)
		}
	}
	tel, err := telemetry.Setup(ctx, telemetry.Config{
		Service: service, Version: readVersion().Version, LogWriter: u.err, LogFormat: string(c.Log.Format), LogLevel: level,
		Listen: c.Metrics.Listen, OTLPEndpoint: c.OTLP.Endpoint, TraceRatio: c.OTLP.TraceRatio,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("setting up telemetry: %w", err)
	}
	tel.Install()
	if a := tel.Addr(); a != "" {
		tel.Logger().Info("serving /metrics, /healthz and /readyz", "addr", a)
	}
	return tel, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := tel.Shutdown(ctx); err != nil {
			tel.Logger().Warn("telemetry did not end cleanly", "error", err)
		}
		return nil
	}, nil
}
