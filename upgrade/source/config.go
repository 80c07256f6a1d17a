package source

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
)

// Config is the table [height]: where the node's height is read, in the order of the fields.
type Config struct {
	URL  string  `toml:"url"`  // any JSON over HTTP
	Path string  `toml:"path"` // the path of the number in it: "result.sync_info.latest_block_height"
	Body *string `toml:"body"` // POSTed to URL where it is set, else GET
	GRPC string  `toml:"grpc"` // the node's gRPC address (DAEMON_GRPC_ADDRESS)
	Log  string  `toml:"log"`  // a regexp over the node's lines with (?P<height>…)
}

// DefaultConfig is what holds where neither file, environment nor flag says otherwise.
func DefaultConfig() Config { return Config{GRPC: "localhost:9090"} }

// Validate reports every mistake at once.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("[height] "+format, args...)) }
	if c.URL != "" {
		if u, err := url.Parse(c.URL); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			bad("url: %q is no http or https address", c.URL)
		}
		if c.Path == "" {
			bad("path: must name the number in the answer of url")
		} else if _, err := parsePath(c.Path); err != nil {
			bad("%v", err)
		}
	}
	if c.GRPC != "" {
		if _, err := parseEndpoint(c.GRPC); err != nil {
			bad("grpc: %v", err)
		}
	}
	if c.Log != "" {
		if re, err := regexp.Compile(c.Log); err != nil {
			bad("log: %v", err)
		} else if !slices.Contains(re.SubexpNames(), "height") {
			bad("log: must have a group (?P<height>…)")
		}
	}
	return errors.Join(errs...)
}
