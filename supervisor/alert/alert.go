// Package alert tells an operator what the supervisor can't settle alone: it runs a command and posts to a webhook. Both
// are slow, fail and hang, so each has a queue and a goroutine of its own; whoever reports an event never waits.
package alert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// The events. Their texts are part of the contract with whoever receives them.
const (
	Held       = "held"                // the node isn't started until a person acts
	CrashLoop  = "crash loop"          // the node ends again and again
	Halted     = "halted"              // the node was stopped where an operator wanted it
	Committed  = "committed"           // an upgrade is done and trusted
	RolledBack = "rolled back"         // an upgrade was undone
	LowDisk    = "disk below min_free" // the next snapshot has no room
	NotReady   = "not ready"           // an upgrade is to come and can't be carried out
	UnitFailed = "unit failed"         // another unit of the host was not acted upon; the node goes on
)

const (
	// queueLength is how many events wait for one receiver; the oldest makes way.
	queueLength = 32
	// quiet is how long the same event with the same text isn't told again: a supervisor that a service manager starts
	// every few seconds only to find the same hold must not fill a chat.
	quiet = 10 * time.Minute
	// tries is how often a delivery is tried; the pauses between them double from firstPause, to 8.5 minutes in all: what is
	// told is told once, and a receiver that is restarted, or a network that is away, comes back within them.
	tries      = 10
	firstPause = time.Second
	// timeout bounds one try.
	timeout = 15 * time.Second
)

// Config is where events go. Both may be set; with neither, events are dropped at once.
type Config struct {
	Command []string // a program and its arguments
	Webhook string   // an http or https address; it may hold a secret
}

// Equal tells whether two configurations deliver to the same receivers.
func (c Config) Equal(d Config) bool {
	return c.Webhook == d.Webhook && slices.Equal(c.Command, d.Command)
}

// Options is what a Sender is made of.
type Options struct {
	Config Config
	Node   string // its name, for the text
	Home   string
	Host   string // the host's name
	Record string // the file that remembers what was told, across restarts; "" = memory alone
	Log    *slog.Logger
}

// Alert is one event as it is told: the body of a webhook, and what a command reads on its stdin.
type Alert struct {
	Schema int       `json:"schema"` // 1; fields are added, never renamed or removed
	Event  string    `json:"event"`
	Detail string    `json:"detail"`
	Node   string    `json:"node"`
	Home   string    `json:"home"`
	Host   string    `json:"host"`
	Time   time.Time `json:"time"` // UTC
	Text   string    `json:"text"` // all of it as one sentence: what Slack, Mattermost and their kin show
}

// Counts are what became of the deliveries; one event to two receivers is two deliveries.
type Counts struct{ Sent, Failed, Dropped uint64 }

// Sender delivers events. Its methods may be called from any goroutine, and none but Close waits for anything.
type Sender struct {
	o      Options
	record *record

	mu     sync.Mutex
	sinks  []*sink
	config Config
	closed bool
	counts Counts
	wg     sync.WaitGroup
}

// sink is one receiver. Its queue is under the Sender's mutex.
type sink struct {
	name    string // for the log; never the address
	send    func(ctx context.Context, a Alert) error
	queue   []queued
	wake    chan struct{}      // the queue has grown
	hurry   chan struct{}      // closed: no pauses between tries any more, and the end when the queue is empty
	ctx     context.Context    // ends what is under way
	abandon context.CancelFunc // gives up
}

type queued struct {
	Alert
	key string
}

// New makes a Sender and starts it.
func New(o Options) *Sender {
	s := &Sender{o: o, record: loadRecord(o.Record, time.Now())}
	s.Configure(o.Config)
	return s
}

// Configure changes the receivers. What waits for one that stays the same is still delivered; the rest is dropped.
func (s *Sender) Configure(c Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || c.Equal(s.config) {
		return
	}
	kept := map[string]*sink{}
	for _, k := range s.sinks {
		same := (k.name == "command" && slices.Equal(c.Command, s.config.Command)) || (k.name == "webhook" && c.Webhook == s.config.Webhook)
		if same {
			kept[k.name] = k
			continue
		}
		s.drop(k, len(k.queue), "its receiver was replaced")
		close(k.hurry)
		k.abandon()
	}
	s.config, s.sinks = c, nil
	add := func(name string, send func(context.Context, Alert) error) {
		k, ok := kept[name]
		if !ok {
			k = &sink{name: name, send: send, wake: make(chan struct{}, 1), hurry: make(chan struct{})}
			k.ctx, k.abandon = context.WithCancel(context.Background())
			s.wg.Go(func() { s.deliver(k) })
		}
		s.sinks = append(s.sinks, k)
	}
	if len(c.Command) > 0 {
		add("command", command{c.Command}.send)
	}
	if c.Webhook != "" {
		add("webhook", newWebhook(c.Webhook).send)
	}
}

// Event tells of an event. The same one with the same detail is told once within some minutes, also by the next run.
func (s *Sender) Event(event, detail string) {
	now := time.Now().UTC()
	a := Alert{
		Schema: 1, Event: event, Detail: detail, Node: s.o.Node, Home: s.o.Home, Host: s.o.Host, Time: now,
		Text: s.o.Node + " on " + s.o.Host + ": " + event,
	}
	if detail != "" {
		a.Text += ": " + detail
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.sinks {
		key := keyOf(k.name, event, detail)
		if s.closed || !s.record.claim(key, now) {
			continue
		}
		if len(k.queue) >= queueLength {
			s.drop(k, 1, "too many wait")
		}
		k.queue = append(k.queue, queued{a, key})
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
}

// drop gives up the n oldest that wait, counts them, and says so. It needs mu.
func (s *Sender) drop(k *sink, n int, why string) {
	if n == 0 {
		return
	}
	for _, q := range k.queue[:n] {
		s.record.settle(q.key, false, time.Time{})
	}
	k.queue = k.queue[n:]
	s.counts.Dropped += uint64(n)
	s.o.Log.Warn("notifications were dropped", "receiver", k.name, "count", n, "reason", why)
}

// Counts returns what became of the deliveries so far.
func (s *Sender) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

// Close delivers what still waits, for grace at most, and ends the Sender.
func (s *Sender) Close(grace time.Duration) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	sinks := s.sinks
	for _, k := range sinks {
		close(k.hurry)
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		return
	case <-time.After(grace):
	}
	s.mu.Lock()
	for _, k := range sinks {
		s.drop(k, len(k.queue), "the supervisor ends")
		k.abandon()
	}
	s.mu.Unlock()
	<-done // what is under way looks at its context
}

// keyOf names an event for one receiver. It is a digest, so that the record holds no text.
func keyOf(receiver, event, detail string) string {
	sum := sha256.Sum256([]byte(receiver + "\x00" + event + "\x00" + detail))
	return hex.EncodeToString(sum[:8])
}

// errFinal wraps an answer that the same request would get again.
var errFinal = errors.New("refused")
