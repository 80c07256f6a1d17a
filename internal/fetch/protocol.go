package fetch

// Message is one line of JSON on the downloader's standard output. A run writes any number of progress lines (Total or
// Done set), then one last line: a result (Path set) or a failure (Error set).
type Message struct {
	Path   string `json:"path,omitempty"`   // the file that was made
	Bytes  int64  `json:"bytes,omitempty"`  // its size
	SHA256 string `json:"sha256,omitempty"` // its digest, hexadecimal; of a download: of the body as it was sent

	Done  int64 `json:"done,omitempty"`  // bytes of the body received
	Total int64 `json:"total,omitempty"` // bytes of the body, 0 = not known

	Error string `json:"error,omitempty"`
	Kind  Kind   `json:"kind,omitempty"`
}

// Kind says what may be done about a failure.
type Kind string

// The kinds of failure.
const (
	Refused   Kind = "refused"   // for good: a rule was broken, or the server has no such file
	Temporary Kind = "temporary" // trouble of the network or the server; another attempt may succeed
	NoSpace   Kind = "no-space"  // the file system is too full
	TooLarge  Kind = "too-large" // the size or file limit was reached
)

// lifelineFD is the descriptor under which the downloader finds the pipe whose other end the supervisor holds. It ends as
// soon as it reads the end of that pipe: a supervisor that was SIGKILLed leaves no downloader behind.
const lifelineFD = 3
