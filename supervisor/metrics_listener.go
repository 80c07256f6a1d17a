package supervisor

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

// observer is the metrics listener of one address.
type observer struct {
	address string
	cancel  context.CancelFunc
	ended   chan struct{}
}

// observeAt begins to serve /metrics, /healthz and /readyz at address, instead of where they are served now; "" ends it.
// All of it happens beside the loop, and nothing of Prometheus is made where nobody is to ask.
func (s *Supervisor) observeAt(address string) {
	old := s.observed
	if old != nil && old.address == address {
		return
	}
	s.observed = nil
	if old != nil {
		old.cancel()
	}
	if address == "" {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	o := &observer{address: address, cancel: cancel, ended: make(chan struct{})}
	s.observed = o
	handler := s.observerHandler()
	s.spawn(func() {
		defer close(o.ended)
		if old != nil {
			<-old.ended // the addresses may overlap
		}
		s.serveObserver(ctx, address, handler)
	})
}

// serveObserver binds and serves until ctx ends. What can't be bound is said once, and tried again: it is no reason to
// treat the node differently.
func (s *Supervisor) serveObserver(ctx context.Context, address string, handler http.Handler) {
	said := ""
	for pause := bindPause; ctx.Err() == nil; pause = min(2*pause, bindPauseMax) {
		var config net.ListenConfig
		l, err := config.Listen(ctx, "tcp", address)
		if err == nil {
			s.log.Info("serving metrics", "address", l.Addr().String())
			pause, said = bindPause, ""
			if err = s.serveUntil(ctx, l, handler); err == nil {
				return
			}
		}
		if ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			s.log.Warn("the metrics can't be served; trying again", "address", address, "error", err, "hint", "[metrics] listen, then: supervisor reload")
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (s *Supervisor) serveUntil(ctx context.Context, l net.Listener, handler http.Handler) error {
	server := &http.Server{
		Handler: handler, MaxHeaderBytes: scrapeHeader,
		ReadHeaderTimeout: scrapeTimeout, ReadTimeout: scrapeTimeout, WriteTimeout: 2 * scrapeTimeout, IdleTimeout: 3 * time.Minute,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { server.Close() })() //nolint:errcheck // nobody waits for an answer any more
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s *Supervisor) observerHandler() http.Handler {
	registry := prometheus.NewRegistry() // of its own: the default one is filled by whoever is linked
	registry.MustRegister(newCollector(s.o.Layout.Node, s.Status))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeTimeout, DisableCompression: true,
	}))
	mux.HandleFunc("GET /healthz", s.serveHealth)
	mux.HandleFunc("GET /readyz", s.serveReady)
	return mux
}

// serveHealth tells whether the loop lives: it answers a question within healthPatience. It does so in every state.
func (s *Supervisor) serveHealth(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), healthPatience)
	defer cancel()
	answered := make(chan struct{})
	select {
	case s.posts <- func() { close(answered) }:
	case <-s.over:
		plain(w, http.StatusServiceUnavailable, "the supervisor ends")
		return
	case <-ctx.Done():
	}
	select {
	case <-answered:
		plain(w, http.StatusOK, "ok")
	case <-s.over:
		plain(w, http.StatusServiceUnavailable, "the supervisor ends")
	case <-ctx.Done():
		plain(w, http.StatusServiceUnavailable, fmt.Sprintf("the loop did not answer within %s", healthPatience))
	}
}

// serveReady tells whether the node runs, and else in one line why not.
func (s *Supervisor) serveReady(w http.ResponseWriter, _ *http.Request) {
	st := s.Status()
	if st.PID != nil && (st.State == Running || st.State == WaitingForBinary) {
		plain(w, http.StatusOK, "ok")
		return
	}
	why := string(st.State)
	if st.Message != "" && st.Message != why {
		why += ": " + st.Message
	}
	plain(w, http.StatusServiceUnavailable, why)
}

func plain(w http.ResponseWriter, status int, line string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	io.WriteString(w, strings.Join(strings.Fields(line), " ")+"\n") //nolint:errcheck // the peer is gone
}
