package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"nodevisor/supervisor/status"
)

const (
	// An address that can't be had is tried again after bindPause, which doubles up to bindPauseMax.
	bindPause, bindPauseMax = time.Second, time.Minute
	// healthPatience is how long the loop may take to answer. It never does anything that takes longer.
	healthPatience = 5 * time.Second
	// Bounds of the metrics listener: who connects may be anybody.
	scrapeTimeout = 10 * time.Second
	scrapeHeader  = 8 << 10 // bytes
	scrapesAtOnce = 4
)

// Serve binds address and serves until ctx ends. What can't be bound is said once, and tried again: it is no reason to
// treat the node differently.
func Serve(ctx context.Context, log *slog.Logger, address string, handler http.Handler) {
	said := ""
	for pause := bindPause; ctx.Err() == nil; pause = min(2*pause, bindPauseMax) {
		var config net.ListenConfig
		l, err := config.Listen(ctx, "tcp", address)
		if err == nil {
			log.Info("serving metrics", "address", l.Addr().String())
			pause, said = bindPause, ""
			if err = serveUntil(ctx, log, l, handler); err == nil {
				return
			}
		}
		if ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			log.Warn("the metrics can't be served; trying again", "address", address, "error", err, "hint", "[metrics] listen, then: supervisor reload")
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func serveUntil(ctx context.Context, log *slog.Logger, l net.Listener, handler http.Handler) error {
	server := &http.Server{
		Handler: handler, MaxHeaderBytes: scrapeHeader,
		ReadHeaderTimeout: scrapeTimeout, ReadTimeout: scrapeTimeout, WriteTimeout: 2 * scrapeTimeout, IdleTimeout: 3 * time.Minute,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { server.Close() })() //nolint:errcheck // nobody waits for an answer any more
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Handler answers /metrics with the latest sample, /healthz by whether the loop is alive, and /readyz by whether the node
// runs. node names the node in every metric; alive returns nil once the loop has answered.
func Handler(node string, latest func() *Sample, alive func(context.Context) error) http.Handler {
	registry := prometheus.NewRegistry() // of its own: the default one is filled by whoever is linked
	registry.MustRegister(newCollector(node, latest))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeTimeout, DisableCompression: true,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { serveHealth(w, r, alive) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { serveReady(w, latest()) })
	return mux
}

// serveHealth tells whether the loop lives: it answers a question within healthPatience. It does so in every state.
func serveHealth(w http.ResponseWriter, r *http.Request, alive func(context.Context) error) {
	ctx, cancel := context.WithTimeout(r.Context(), healthPatience)
	defer cancel()
	switch err := alive(ctx); {
	case err == nil:
		plain(w, http.StatusOK, "ok")
	case ctx.Err() != nil:
		plain(w, http.StatusServiceUnavailable, fmt.Sprintf("the loop did not answer within %s", healthPatience))
	default:
		plain(w, http.StatusServiceUnavailable, err.Error())
	}
}

// serveReady tells whether the node runs, and else in one line why not.
func serveReady(w http.ResponseWriter, st *Sample) {
	if st.PID != nil && (st.State == status.Running || st.State == status.WaitingForBinary) {
		plain(w, http.StatusOK, "ok")
		return
	}
	why := string(st.State)
	if st.Message != "" && st.Message != why {
		why += ": " + st.Message
	}
	plain(w, http.StatusServiceUnavailable, why)
}

func plain(w http.ResponseWriter, code int, line string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	io.WriteString(w, strings.Join(strings.Fields(line), " ")+"\n") //nolint:errcheck // the peer is gone
}
