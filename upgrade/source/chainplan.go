package source

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nodevisor/internal/hint"
)

// planTimeout bounds CurrentPlan, as it does in Cosmovisor's prepare-upgrade.
const planTimeout = 10 * time.Second

// currentPlan is the method of x/upgrade that answers with the plan that governance passed.
const currentPlan = "cosmos.upgrade.v1beta1.Query/CurrentPlan"

// ChainPlan is the plan that is scheduled on the chain, as the chain spells it: untrusted text.
type ChainPlan struct {
	Name   string
	Height int64
	Time   time.Time // zero but for the timed plans of SDKs before 0.43
	Info   string
}

// CurrentPlan asks the node at addr (host:port; https:// for TLS) for the plan that is scheduled on the chain, at most
// 10 s. It is nil where there is none.
func CurrentPlan(ctx context.Context, addr string) (*ChainPlan, error) {
	ctx, cancel := context.WithTimeout(ctx, planTimeout)
	defer cancel()
	client, err := newGRPCClient(addr)
	if err != nil {
		return nil, planError(addr, err)
	}
	defer client.close()
	msg, err := client.call(ctx, currentPlan, nil)
	if err != nil {
		return nil, planError(addr, err)
	}
	plan, err := parseCurrentPlan(msg)
	if err != nil {
		return nil, planError(addr, err)
	}
	return plan, nil
}

func planError(addr string, err error) error {
	return &hint.Error{
		Op: "ask for the chain's plan at", Path: addr, Err: err,
		Hint: "start the node with its gRPC on, or set [height] grpc (DAEMON_GRPC_ADDRESS) to the address in config/app.toml",
	}
}

// parseCurrentPlan reads QueryCurrentPlanResponse{plan = 1} and Plan{name = 1, time = 2, height = 3, info = 4}
// (cosmos/upgrade/v1beta1/query.proto, upgrade.proto).
func parseCurrentPlan(msg []byte) (*ChainPlan, error) {
	var plan, stamp []byte
	var got ChainPlan
	err := errors.Join(
		eachField(msg, func(f field) {
			if f.num == 1 {
				plan = f.bytes
			}
		}),
		eachField(plan, func(f field) {
			switch f.num {
			case 1:
				got.Name = string(f.bytes)
			case 2:
				stamp = f.bytes
			case 3:
				got.Height = int64(f.varint)
			case 4:
				got.Info = string(f.bytes)
			}
		}))
	switch {
	case err != nil:
		return nil, errMalformed
	case plan == nil:
		return nil, nil //nolint:nilnil // no plan is the usual answer
	case got.Name == "" || got.Height < 0:
		return nil, fmt.Errorf("%w: a plan named %q at height %d", errMalformed, got.Name, got.Height)
	}
	if stamp != nil {
		if got.Time, err = parseTimestamp(stamp); err != nil {
			return nil, err
		}
	}
	return &got, nil
}

// parseTimestamp reads google.protobuf.Timestamp{seconds = 1, nanos = 2}. Plans by height carry Go's zero time.
func parseTimestamp(msg []byte) (time.Time, error) {
	var seconds, nanos int64
	err := eachField(msg, func(f field) {
		switch f.num {
		case 1:
			seconds = int64(f.varint)
		case 2:
			nanos = int64(f.varint)
		}
	})
	t := time.Unix(seconds, nanos).UTC()
	if err != nil || nanos < 0 || nanos > 999_999_999 || t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}, fmt.Errorf("%w: the plan's time", errMalformed)
	}
	return t, nil
}
