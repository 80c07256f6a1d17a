package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"nodevisor/internal/fakenode/trace"
)

// rpcLimit bounds a request body and an answer, in bytes.
const rpcLimit = 1 << 20

// rpcAddress is where the RPC listens: network "" is nowhere.
func (s *settings) rpcAddress() (network, address string) {
	text := s.rpc
	if text == "" {
		text = s.configValue("rpc", "laddr")
	}
	if path, ok := strings.CutPrefix(text, "unix://"); ok {
		return "unix", path
	}
	if text == "" || text == "off" {
		return "", ""
	}
	return "tcp", strings.TrimPrefix(text, "tcp://")
}

// serveRPC starts the server, or returns nil where none is wanted.
func (n *node) serveRPC() (*http.Server, error) {
	network, address := n.rpcAddress()
	if network == "" {
		return nil, nil
	}
	if network == "unix" {
		_ = os.Remove(address) // of a node that was killed; the store's lock says that it is gone
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		return nil, fmt.Errorf("failed to listen on %s: %w", address, err)
	}
	server := &http.Server{Handler: n.routes(), ReadHeaderTimeout: 10 * time.Second}
	go server.Serve(listener) //nolint:errcheck // it ends with the node
	logf("INF", "rpc-server", "Starting RPC HTTP server on %s", listener.Addr())
	n.record(trace.Event{Kind: trace.RPC, Addr: listener.Addr().String()})
	return server, nil
}

// routes serves each method under its own path, and all of them as JSON-RPC at the root, as CometBFT does
// (https://docs.cometbft.com/v0.38/rpc/).
func (n *node) routes() http.Handler {
	methods := map[string]func() any{
		"status": n.statusResult, "health": func() any { return map[string]any{} }, "abci_info": n.abciInfo, "block": n.blockResult,
	}
	mux := http.NewServeMux()
	for name, method := range methods {
		mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, _ *http.Request) {
			answer(w, json.RawMessage("-1"), method())
		})
	}
	mux.HandleFunc("POST /{$}", func(w http.ResponseWriter, r *http.Request) {
		var call struct {
			ID     json.RawMessage `json:"id"`
			Method string          `json:"method"`
		}
		if err := json.NewDecoder(io.LimitReader(r.Body, rpcLimit)).Decode(&call); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		method, ok := methods[call.Method]
		if !ok {
			http.Error(w, "method not found", http.StatusNotFound)
			return
		}
		answer(w, call.ID, method())
	})
	return mux
}

// answer wraps a result as JSON-RPC does. CometBFT answers a plain GET with the id -1.
func answer(w http.ResponseWriter, id json.RawMessage, result any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"jsonrpc": "2.0", "id": id, "result": result})
}

// statusResult is CometBFT's ResultStatus. Its height is the block store's: at an upgrade it is one ahead of the
// application's.
func (n *node) statusResult() any {
	st := n.status.Load()
	return map[string]any{
		"node_info": map[string]any{
			"id": "fa4e0000000000000000000000000000000000de", "network": n.network, "version": "0.38.0", "moniker": "fakenode",
			"other": map[string]any{"tx_index": "on"},
		},
		"application_info": map[string]any{"version": version},
		"sync_info": map[string]any{
			"latest_block_hash": strings.ToUpper(st.Hash), "latest_app_hash": strings.ToUpper(st.Hash),
			"latest_block_height": strconv.FormatInt(st.Stored, 10), "latest_block_time": time.Now().UTC().Format(time.RFC3339Nano),
			"earliest_block_height": "1", "catching_up": n.catchingUp,
		},
		"validator_info": map[string]any{"address": "FA4E", "voting_power": "10"},
	}
}

// abciInfo holds the height that the application committed.
func (n *node) abciInfo() any {
	st := n.status.Load()
	return map[string]any{"response": map[string]any{
		"data": "fakenode", "version": version, "last_block_height": strconv.FormatInt(st.Applied, 10),
	}}
}

// blockResult is the newest stored block's header, as far as anyone reads it.
func (n *node) blockResult() any {
	st := n.status.Load()
	return map[string]any{"block": map[string]any{"header": map[string]any{
		"chain_id": n.network, "height": strconv.FormatInt(st.Stored, 10),
	}}}
}

// askStatus returns the result of /status of the running node, as an SDK application's `status` command gets it.
func (s *settings) askStatus() (map[string]any, error) {
	network, address := s.rpcAddress()
	if network == "" {
		// client.toml's default, which is what a node without a configuration asks.
		network, address = "tcp", "127.0.0.1:26657"
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}}
	host := address
	if network == "unix" {
		host = "localhost"
	}
	response, err := client.Get((&url.URL{Scheme: "http", Host: host, Path: "/status"}).String())
	if err != nil {
		return nil, fail("post failed: %v", err)
	}
	defer response.Body.Close() //nolint:errcheck // read only
	var envelope struct {
		Result map[string]any `json:"result"`
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, rpcLimit)).Decode(&envelope); err != nil {
		return nil, fail("error unmarshalling: %v", err)
	}
	return envelope.Result, nil
}
