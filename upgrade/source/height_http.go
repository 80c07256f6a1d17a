package source

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"time"
)

// urlSource is [height] url: any JSON over HTTP.
type urlSource struct {
	client *http.Client
	url    string
	body   *string
	path   jsonPath
	err    error
}

func newURLSource(cfg Config) *urlSource {
	path, err := parsePath(cfg.Path)
	return &urlSource{
		client: &http.Client{Transport: &http.Transport{
			Proxy:           http.ProxyFromEnvironment, // unlike the node's own addresses this one may be far away
			DialContext:     (&net.Dialer{Timeout: askTimeout}).DialContext,
			MaxIdleConns:    1,
			IdleConnTimeout: 15 * time.Second,
		}},
		url: cfg.URL, body: cfg.Body, path: path, err: err,
	}
}

func (s *urlSource) read(ctx context.Context) (Reading, error) {
	if s.err != nil {
		return Reading{}, s.err
	}
	method, body := http.MethodGet, io.Reader(http.NoBody)
	if s.body != nil {
		method, body = http.MethodPost, strings.NewReader(*s.body)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.url, body)
	if err != nil {
		return Reading{}, errors.New("the address can't be used") // without repeating it: it may hold a key
	}
	req.Header.Set("Accept", "application/json")
	if s.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	data, err := exchange(s.client, req)
	if err != nil {
		return Reading{}, err
	}
	found, err := lookUp(data, s.path)
	if err != nil {
		return Reading{}, err
	}
	height, err := heightOf(found)
	return Reading{Height: height}, err
}

func (s *urlSource) close() { s.client.CloseIdleConnections() }

// defaultRPC is CometBFT's own default of [rpc] laddr.
const defaultRPC = "tcp://127.0.0.1:26657"

// rpcSource is CometBFT's RPC, where the node itself listens: the address comes from the node's arguments or its
// config/config.toml, so that it can't be another node's of the same host.
type rpcSource struct {
	conf   configFile[cometConfig]
	args   func() []string
	addr   string // what client is for
	url    string
	client *http.Client
}

func newRPCSource(opt Options) *rpcSource {
	return &rpcSource{conf: configFile[cometConfig]{path: cometPath(opt.Home)}, args: opt.Args}
}

// address returns where the node listens.
func (s *rpcSource) address() (string, error) {
	addr, ok := flagValue(s.args(), "rpc.laddr")
	if !ok {
		conf, err := s.conf.load()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("%w: no config/config.toml", errOff)
		case err != nil:
			return "", err
		case conf.RPC.Addr == nil:
			return defaultRPC, nil
		}
		addr = *conf.RPC.Addr
	}
	if addr == "" {
		return "", fmt.Errorf("%w: the node has no RPC", errOff)
	}
	return addr, nil
}

func (s *rpcSource) read(ctx context.Context) (Reading, error) {
	addr, err := s.address()
	if err != nil {
		return Reading{}, err
	}
	if addr != s.addr {
		e, err := parseEndpoint(addr)
		if err != nil {
			return Reading{}, err
		}
		s.close()
		s.addr, s.url, s.client = addr, e.base()+"/status", &http.Client{Transport: e.transport()}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, http.NoBody)
	if err != nil {
		return Reading{}, err
	}
	data, err := exchange(s.client, req)
	if err != nil {
		return Reading{}, err
	}
	return parseStatus(data)
}

func (s *rpcSource) close() {
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
}

// The places of the height in what CometBFT's /status and the SDK's status command answer: the JSON-RPC envelope, the
// bare result (Sei's RPC, and the command since SDK 0.47), and the command's older spelling.
var syncInfos = []jsonPath{
	{"result", "sync_info"},
	{"sync_info"},
	{"SyncInfo"},
}

func parseStatus(data []byte) (Reading, error) {
	found, err := lookUp(data, syncInfos...)
	if err != nil {
		return Reading{}, err
	}
	info, _ := found.(map[string]any)
	latest, ok := info["latest_block_height"]
	if !ok {
		return Reading{}, fmt.Errorf("latest_block_height: %w", errMissing)
	}
	height, err := heightOf(latest)
	if err != nil {
		return Reading{}, err
	}
	r := Reading{Height: height}
	if catching, ok := info["catching_up"].(bool); ok {
		r.CatchingUp = &catching
	}
	return r, nil
}

// parseStatusOutput finds the status among what a program printed: alone, or as the last line that is a JSON object
// (binaries print warnings before it).
func parseStatusOutput(out []byte) (Reading, error) {
	r, err := parseStatus(out)
	if err == nil || errors.Is(err, errNoBlock) {
		return r, err
	}
	lines := bytes.Split(out, []byte("\n"))
	for i := len(lines) - 1; i >= 0; i-- {
		if line := bytes.TrimSpace(lines[i]); bytes.HasPrefix(line, []byte("{")) && json.Valid(line) {
			return parseStatus(line)
		}
	}
	return r, err
}
