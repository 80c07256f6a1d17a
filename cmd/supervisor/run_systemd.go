package main

import (
	"context"
	"time"

	"nodevisor/cmd/supervisor/config"
	"nodevisor/cmd/supervisor/host"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/supervisor"
	"nodevisor/systemd"
)

// lastMessage is how long the end of `run` waits for systemd to take in what was said last.
const lastMessage = time.Second

// systemdLink is what a `run` holds of its connection to systemd; either may be nil.
type systemdLink struct {
	notifier *systemd.Notifier
	node     *systemd.NodeSocket // kept until the end: a node that was given it goes on using it
	served   bool
}

// nodeSocket is where the node says what it would say to systemd ([systemd] node_notify); "" = it says it to nobody.
func (l *systemdLink) nodeSocket(s *session.Session) (string, error) {
	if !s.Config.Systemd.NodeNotify {
		return "", nil
	}
	if l.node == nil {
		node, err := listenNode(s)
		if err != nil {
			return "", err
		}
		l.node = node
	}
	return l.node.Path(), nil
}

// serve begins to listen to the node, once.
func (l *systemdLink) serve(said func(pid int, ready bool, status string)) {
	if l.node != nil && !l.served {
		l.served = true
		go l.node.Serve(said)
	}
}

func (l *systemdLink) close() {
	if l.node != nil {
		l.node.Close() //nolint:errcheck // the process ends
	}
	if l.notifier != nil {
		l.notifier.Close(lastMessage)
	}
}

// listenNode makes the node's notify socket.
func listenNode(s *session.Session) (*systemd.NodeSocket, error) {
	path, err := host.NotifySocket(s.Environ, s.Config.Node.Home)
	if err != nil {
		return nil, err
	}
	return systemd.ListenNode(path)
}

// unitActions sorts the units by the moment at which they are acted upon, in the order of the configuration.
func unitActions(units []config.Unit, act func(ctx context.Context, name, action string) error) map[supervisor.Moment][]supervisor.UnitAction {
	actions := map[supervisor.Moment][]supervisor.UnitAction{}
	for _, u := range units {
		at := supervisor.Moment(u.At)
		actions[at] = append(actions[at], supervisor.UnitAction{
			Name: u.Name, Action: u.Action, Do: func(ctx context.Context) error { return act(ctx, u.Name, u.Action) },
		})
	}
	return actions
}
