package source

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/mem"
	gstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"nodevisor/internal/hint"
)

// grpcNode is a real grpc-go server whose methods answer with given bytes.
type grpcNode struct {
	addr    string
	answers map[string]func() ([]byte, error)
}

// bytesCodec lets the server take and give messages as they are.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }
func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func startGRPC(t *testing.T, opts ...grpc.ServerOption) *grpcNode {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	node := &grpcNode{addr: listener.Addr().String(), answers: map[string]func() ([]byte, error){}}
	server := grpc.NewServer(append(opts, grpc.ForceServerCodecV2(bytesCodec{}), grpc.UnknownServiceHandler(
		func(_ any, stream grpc.ServerStream) error {
			method, _ := grpc.MethodFromServerStream(stream)
			answer := node.answers[strings.TrimPrefix(method, "/")]
			if answer == nil {
				return gstatus.Errorf(codes.Unimplemented, "unknown service")
			}
			var req []byte
			if err := stream.RecvMsg(&req); err != nil {
				return err
			}
			msg, err := answer()
			if err != nil {
				return err
			}
			return stream.SendMsg(&msg)
		}))...)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return node
}

func (n *grpcNode) answer(method string, msg []byte) {
	n.answers[method] = func() ([]byte, error) { return msg, nil }
}

// message joins encoded fields; number and text encode one.
func message(fields ...[]byte) []byte { return bytes.Join(fields, nil) }

func number(num protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), uint64(v))
}

func text[T string | []byte](num protowire.Number, v T) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), []byte(v))
}

// block is a Block{header = 1} with the header's version, chain id, height and time.
func block(height int64) []byte {
	header := message(text(1, number(1, 11)), text(2, "demo-1"), number(3, height), text(4, number(1, 1_700_000_000)))
	return message(text(1, header), text(2, text(1, strings.Repeat("tx", 1000))))
}

func TestReadFromGRPC(t *testing.T) {
	checkLeaks(t)
	node := startGRPC(t)
	h := newHeights(t, Config{GRPC: node.addr}, Options{})
	for name, msg := range map[string][]byte{
		"block alone":         message(text(1, text(1, "hash")), text(2, block(1234))),
		"block and sdk_block": message(text(1, text(1, "hash")), text(2, block(1234)), text(3, block(1234))),
		"sdk_block alone":     message(text(3, block(1234))),
		"unknown fields":      message(number(99, 5), text(3, message(block(1234), text(77, "x"))), protowire.AppendFixed64(protowire.AppendTag(nil, 98, protowire.Fixed64Type), 7)),
	} {
		node.answer(latestBlock, msg)
		r, err := h.Read(testContext(t))
		require.NoError(t, err, name)
		assert.EqualValues(t, 1234, r.Height, name)
		assert.Equal(t, SourceGRPC, r.Source)
	}
	for name, msg := range map[string][]byte{
		"empty": nil, "no header": text(3, ""), "no height": text(3, text(1, text(2, "demo-1"))), "negative": text(3, block(-1)), "zero": text(3, block(0)),
		"garbage": []byte("\xff\xff\xff"), "cut short": text(3, block(1234))[:20], "height as text": text(3, text(1, text(3, "1234"))),
		"larger than the cap": message(text(2, block(1234)), text(50, make([]byte, maxMessage))),
	} {
		node.answer(latestBlock, msg)
		h.Reset()
		r, err := h.Read(testContext(t))
		require.ErrorIs(t, err, ErrUnknown, name)
		assert.Zero(t, r.Height, name)
	}
	delete(node.answers, latestBlock)
	h.Reset()
	_, err := h.Read(testContext(t))
	assert.ErrorContains(t, err, "unimplemented")
}

// What listens there may be anything: a web server, something that never answers, nothing.
func TestReadFromGRPCSurvivesOtherServers(t *testing.T) {
	checkLeaks(t)
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { silent.Close() })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	closed.Close()
	rpc := serve(t, status(rpcStatus, 42))
	for name, addr := range map[string]string{"web": web.Listener.Addr().String(), "silent": silent.Addr().String(), "closed": closed.Addr().String()} {
		h := newHeights(t, Config{GRPC: addr}, Options{Home: rpcHome(t, strings.Replace(rpc.URL, "http", "tcp", 1))})
		h.asked[0].timeout = 300 * time.Millisecond
		r, err := h.Read(testContext(t))
		require.NoError(t, err, name)
		assert.EqualValues(t, 42, r.Height, name)
		assert.Equal(t, SourceRPC, r.Source, name)
	}
}

// The default address could be another node's on the same host.
func TestGRPCAddress(t *testing.T) {
	for name, c := range map[string]struct {
		grpc, app string
		args      []string
		want      string
	}{
		"explicit":              {"node:1", "[grpc]\nenable=false\n", nil, "node:1"},
		"none":                  {"", "", nil, ""},
		"default, no app.toml":  {"localhost:9090", "", nil, ""},
		"default, not named":    {"localhost:9090", "minimum-gas-prices = ''\n", nil, "localhost:9090"},
		"default, other port":   {"localhost:9090", "[grpc]\nenable = true\naddress = '0.0.0.0:9190'\n", nil, "0.0.0.0:9190"},
		"default, off":          {"localhost:9090", "[grpc]\nenable = false\naddress = '0.0.0.0:9190'\n", nil, ""},
		"default, broken":       {"localhost:9090", "[grpc", nil, ""},
		"argument":              {"localhost:9090", "[grpc]\naddress = '0.0.0.0:9190'\n", []string{"start", "--grpc.address", "localhost:9"}, "localhost:9"},
		"argument, no app.toml": {"localhost:9090", "", []string{"start", "--grpc.address=localhost:9"}, "localhost:9"},
		"argument, off":         {"localhost:9090", "[grpc]\nenable=true\n", []string{"start", "--grpc.enable=false"}, ""},
		"argument, on":          {"localhost:9090", "[grpc]\nenable=false\naddress='localhost:8'\n", []string{"--grpc.enable=true"}, "localhost:8"},
		"not ours":              {"localhost:9090", "[grpc]\naddress = 'localhost:8'\n", []string{"start", "--", "--grpc.address=localhost:9"}, "localhost:8"},
	} {
		home := t.TempDir()
		if c.app != "" {
			write(t, appPath(home), c.app)
		}
		addr, err := GRPCAddress(Config{GRPC: c.grpc}, home, c.args)
		assert.Equal(t, c.want, addr, name)
		assert.Equal(t, c.want == "", err != nil, "%s: %v", name, err)
		assert.Equal(t, name == "default, no app.toml", errors.Is(err, ErrNoAppConfig), name)
	}
}

func TestCurrentPlan(t *testing.T) {
	checkLeaks(t)
	node := startGRPC(t)
	zeroTime := text(2, number(1, time.Time{}.Unix()))
	for name, c := range map[string]struct {
		msg  []byte
		want *ChainPlan
	}{
		"none":         {nil, nil},
		"by height":    {text(1, message(text(1, "V2-Demo"), zeroTime, number(3, 1234), text(4, `{"binaries":{}}`))), &ChainPlan{Name: "V2-Demo", Height: 1234, Info: `{"binaries":{}}`}},
		"no info":      {text(1, message(text(1, "v2"), number(3, 1))), &ChainPlan{Name: "v2", Height: 1}},
		"by time":      {text(1, message(text(1, "v2"), text(2, message(number(1, 1_700_000_000), number(2, 5))))), &ChainPlan{Name: "v2", Time: time.Unix(1_700_000_000, 5).UTC()}},
		"client state": {text(1, message(text(1, "v2"), number(3, 7), text(5, "any"))), &ChainPlan{Name: "v2", Height: 7}},
	} {
		node.answer(currentPlan, c.msg)
		got, err := CurrentPlan(testContext(t), node.addr)
		require.NoError(t, err, name)
		assert.Equal(t, c.want, got, name)
	}
	for name, msg := range map[string][]byte{
		"no name": text(1, number(3, 7)), "negative": text(1, message(text(1, "v2"), number(3, -7))), "garbage": {0xff}, "plan is garbage": text(1, "\xff"),
		"time is garbage": text(1, message(text(1, "v2"), text(2, "\xff"))), "time far off": text(1, message(text(1, "v2"), text(2, number(1, 1<<60)))),
	} {
		node.answer(currentPlan, msg)
		got, err := CurrentPlan(testContext(t), node.addr)
		require.Error(t, err, name)
		assert.Nil(t, got, name)
		assert.NotEmpty(t, hint.Of(err), name)
	}
	node.answers[currentPlan] = func() ([]byte, error) { return nil, gstatus.Error(codes.Internal, "panic") }
	_, err := CurrentPlan(testContext(t), node.addr)
	assert.ErrorContains(t, err, "panic")
}

func TestCurrentPlanFails(t *testing.T) {
	checkLeaks(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	closed.Close()
	for name, addr := range map[string]string{"closed": closed.Addr().String(), "no address": "nonsense"} {
		_, err := CurrentPlan(testContext(t), addr)
		require.Error(t, err, name)
		assert.ErrorContains(t, err, addr, name)
		var he *hint.Error
		require.True(t, errors.As(err, &he), name)
		assert.Contains(t, he.Hint, "grpc")
	}
}

// https:// means TLS with a certificate that is checked; plain text to such a port fails too.
func TestGRPCOverTLS(t *testing.T) {
	checkLeaks(t)
	web := httptest.NewUnstartedServer(nil)
	web.StartTLS()
	cert := web.TLS.Certificates[0]
	web.Close()
	node := startGRPC(t, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})))
	node.answer(currentPlan, text(1, message(text(1, "v2"), number(3, 7))))
	_, err := CurrentPlan(testContext(t), "https://"+node.addr)
	require.ErrorContains(t, err, "certificate")
	_, err = CurrentPlan(testContext(t), node.addr)
	require.Error(t, err)

	client, err := newGRPCClient("https://" + node.addr)
	require.NoError(t, err)
	t.Cleanup(client.close)
	client.http.Transport.(*http.Transport).TLSClientConfig = web.Client().Transport.(*http.Transport).TLSClientConfig
	msg, err := client.call(testContext(t), currentPlan, nil)
	require.NoError(t, err)
	plan, err := parseCurrentPlan(msg)
	require.NoError(t, err)
	assert.Equal(t, "v2", plan.Name)
}

func FuzzParseMessages(f *testing.F) {
	f.Add(text(3, block(1234)))
	f.Add(text(1, message(text(1, "v2"), text(2, number(1, 5)), number(3, 1234), text(4, "info"))))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if h, err := parseLatestBlock(msg); err == nil {
			require.Positive(t, h)
		}
		if p, err := parseCurrentPlan(msg); err == nil && p != nil {
			require.NotEmpty(t, p.Name)
			require.GreaterOrEqual(t, p.Height, int64(0))
			require.NotPanics(t, func() { _ = fmt.Sprint(p.Time) })
		}
	})
}
