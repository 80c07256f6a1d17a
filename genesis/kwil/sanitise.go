package kwil

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// VotersTable is the table whose rows become validators of the genesis document instead of rows of the state.
const VotersTable = "kwild_voting.voters"

const (
	// readBuffer is how much of the dump is looked at at a time, in bytes; lines may be longer.
	readBuffer = 1 << 20
	// writeBuffer gathers what is kept, so that hash and compressor get pieces that are worth their while.
	writeBuffer = 256 << 10
	// maxCopyHead bounds the text of one COPY statement: 1,600 columns with names of 63 bytes, quoted.
	maxCopyHead = 1 << 20
	// maxVoterRow bounds a row of the voters' table: a key and a number.
	maxVoterRow = 64 << 10
)

// dumpEnd is the last comment of every plain dump (pg_dump, pg_backup_archiver.c); without it the dump was cut short.
const dumpEnd = "-- PostgreSQL database dump complete"

// ErrTruncated means that SQL ends before its end.
var ErrTruncated = errors.New("the SQL ends early")

// ErrUnexpected means SQL that pg_dump doesn't write where it stands; nothing is guessed about it.
var ErrUnexpected = errors.New("not what pg_dump writes")

// Table is a table's number of rows in the SQL.
type Table struct {
	Name string // as pg_dump writes it: schema.table, quoted where needed
	Rows int64
}

// State is what a pass over the SQL found.
type State struct {
	SHA256 [sha256.Size]byte // of the SQL that was written, uncompressed
	Bytes  int64             // of the same
	Tables []Table           // in the order of the SQL; the voters' rows count where they are
	Voters []Validator       // the voters' rows that were taken out
	Notes  []string          // what a person should know
}

// Rows is the number of rows in all tables.
func (s State) Rows() (n int64) {
	for _, t := range s.Tables {
		n += t.Rows
	}
	return n
}

// Sanitise copies pg_dump's plain output from src to dst by the rules of Kwil's snapshot tool, and ends it with the
// statement that shifts the expiry of resolutions by height. Memory is constant whatever the length of lines and rows.
//
// Left out are blank lines and comment lines; before the first CREATE SCHEMA, TABLE or FUNCTION also SET, SELECT,
// CREATE DATABASE and \connect; everywhere \restrict and \unrestrict, whose key is random; and the voters' rows. In
// COPY data and literals nothing is left out. In the bodies of plpgsql and sql functions blank and comment lines are,
// as Kwil's tool does, where they lie outside the body's own literals: the function does the same without them.
func Sanitise(dst io.Writer, src io.Reader, v Version, height int64) (State, error) {
	s := newStream(dst, src)
	s.version = v
	if err := s.run(); err != nil {
		return State{}, err
	}
	if !s.complete {
		return State{}, fmt.Errorf("%w: pg_dump's last line is missing", ErrTruncated)
	}
	if err := s.emit([]byte(expiryShift + strconv.FormatInt(height, 10) + ";\n")); err != nil {
		return State{}, err
	}
	return s.finish()
}

// expiryShift begins the last statement of the state; the height of the stop and ";" end it.
const expiryShift = "UPDATE kwild_voting.resolutions SET expiration = expiration-"

// stream is one pass over SQL.
type stream struct {
	src     *bufio.Reader
	out     *bufio.Writer
	version Version // "" = the SQL is only read: nothing is left out
	state   State
	sum     interface{ Sum([]byte) []byte }

	lex   lexer
	body  *lexer // inside a function's body that is SQL itself; else nil
	stmt  statement
	meta  bool // the line at hand is psql's, not SQL
	drop  bool // the line at hand is left out
	purge bool // the statement at hand is left out

	started  bool   // the first CREATE SCHEMA, TABLE or FUNCTION was seen
	complete bool   // pg_dump's last comment was seen
	last     []byte // the beginning of the last line that was kept
}

// statement is what must be known of the statement at hand.
type statement struct {
	begun    bool
	words    int
	first    [2]string // upper case
	previous string    // the word before, upper case; cleared by anything else
	language string    // lower case
	head     []byte    // the text so far, of a COPY only
	copyFrom string    // the table of a finished COPY … FROM stdin, until its data begins
}

func newStream(dst io.Writer, src io.Reader) *stream {
	sum := sha256.New()
	s := &stream{src: bufio.NewReaderSize(src, readBuffer), sum: sum}
	s.out = bufio.NewWriterSize(io.MultiWriter(sum, dst), writeBuffer)
	s.lex.onWord, s.lex.onByte, s.lex.onDollar, s.lex.onBody = s.word, s.symbol, s.dollarQuote, s.inBody
	return s
}

// emit keeps bytes.
func (s *stream) emit(b []byte) error {
	s.state.Bytes += int64(len(b))
	_, err := s.out.Write(b)
	return err
}

func (s *stream) finish() (State, error) {
	if err := s.out.Flush(); err != nil {
		return State{}, err
	}
	s.sum.Sum(s.state.SHA256[:0])
	return s.state, nil
}

// run goes through statements line by line, and through COPY data block by block.
func (s *stream) run() error {
	begin := true
	for {
		piece, err := s.src.ReadSlice('\n')
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("cannot read the SQL: %w", err)
		}
		if len(piece) > 0 {
			ended := piece[len(piece)-1] == '\n'
			if err := s.line(piece, begin, ended); err != nil {
				return err
			}
			begin = ended
		}
		if errors.Is(err, io.EOF) {
			return s.atEnd(begin)
		}
		if begin && s.stmt.copyFrom != "" {
			if err := s.copyBlock(); err != nil {
				return err
			}
		}
	}
}

// atEnd refuses SQL that stops in the middle of something.
func (s *stream) atEnd(lineEnded bool) error {
	switch {
	case s.stmt.copyFrom != "":
		return fmt.Errorf("%w: in the rows of %s", ErrTruncated, s.stmt.copyFrom)
	case !lineEnded || s.stmt.begun || s.lex.state != inCode:
		return fmt.Errorf("%w: in the middle of a statement", ErrTruncated)
	}
	return nil
}

// line takes a piece of a line outside COPY data: its beginning, its end, or both.
func (s *stream) line(piece []byte, begin, ended bool) error {
	if begin {
		if err := s.classify(piece, ended); err != nil {
			return err
		}
	}
	if !s.meta {
		s.stmt.keepHead(piece)
		s.lex.feed(piece)
		if s.lex.backslash {
			// Outside of literals psql takes it as a command, which may run programs: CVE-2025-8714.
			return fmt.Errorf("%w: a backslash outside of a literal", ErrUnexpected)
		}
	}
	if s.stmt.copyFrom == unknownTable || s.stmt.copyFrom != "" && s.stmt.begun {
		return fmt.Errorf("%w: a COPY in another form", ErrUnexpected)
	}
	if ended && !s.stmt.begun {
		defer func() { s.purge = false }()
	}
	if s.drop || s.purge {
		return nil
	}
	if begin {
		s.last = append(s.last[:0], piece[:min(len(piece), len(expiryShift)+32)]...)
	}
	return s.emit(piece)
}

// copyBlock passes the rows of a COPY on, and counts them. In the text format a row is a line, a line feed in a value
// is \n, and a row of \. alone ends the data (the manual page of COPY): nothing else is looked at.
func (s *stream) copyBlock() error {
	table := Table{Name: s.stmt.copyFrom}
	var err error
	if s.version != "" && table.Name == VotersTable {
		err = s.takeVoters()
	} else {
		table.Rows, err = s.passRows(table.Name)
	}
	if err != nil {
		return err
	}
	s.stmt.copyFrom = ""
	s.state.Tables = append(s.state.Tables, table)
	s.last = s.last[:0]
	return s.emit([]byte("\\.\n"))
}

// passRows works on whole buffers: rows are found by their ends only.
func (s *stream) passRows(table string) (rows int64, err error) {
	for begin := true; ; {
		// Three bytes tell the end of the data from a row; a shorter rest can only be cut short.
		if ahead, err := s.src.Peek(3); err != nil && (begin || len(ahead) == 0) {
			return 0, s.cut(err, table)
		}
		chunk, _ := s.src.Peek(s.src.Buffered()) // what is buffered is there
		n := 0
		switch {
		case begin && bytes.HasPrefix(chunk, []byte("\\.\n")):
			_, err := s.src.Discard(3)
			return rows, err
		case !begin:
			n = bytes.IndexByte(chunk, '\n') + 1
		default:
			if end := bytes.Index(chunk, []byte("\n\\.\n")); end >= 0 {
				n = end + 1
			} else {
				n = bytes.LastIndexByte(chunk, '\n') + 1
			}
		}
		if begin = n > 0; !begin {
			n = len(chunk) // a row that is longer than the buffer
		}
		rows += int64(bytes.Count(chunk[:n], []byte{'\n'}))
		if err := s.emit(chunk[:n]); err != nil {
			return 0, err
		}
		if _, err := s.src.Discard(n); err != nil {
			return 0, err
		}
	}
}

// takeVoters reads the voters' rows instead of passing them on.
func (s *stream) takeVoters() error {
	for {
		row, err := s.src.ReadSlice('\n')
		if err != nil {
			return s.cut(err, VotersTable)
		}
		row = row[:len(row)-1]
		if string(row) == `\.` {
			return nil
		}
		if len(row) > maxVoterRow {
			return fmt.Errorf("%w: a row of %s with %d bytes", ErrUnexpected, VotersTable, len(row))
		}
		v, err := parseVoter(s.version, string(row))
		if err != nil {
			return err
		}
		s.state.Voters = append(s.state.Voters, v)
	}
}

// cut is the error of data that doesn't end.
func (s *stream) cut(err error, table string) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: in the rows of %s", ErrTruncated, table)
	}
	return fmt.Errorf("cannot read the rows of %s: %w", table, err)
}
