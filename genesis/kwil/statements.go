package kwil

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// classify decides at the beginning of a line whether it is left out.
func (s *stream) classify(piece []byte, ended bool) error {
	s.meta, s.drop = false, false
	text := bytes.TrimFunc(piece, func(r rune) bool { return r < 0x80 && isSpace(byte(r)) })
	blank, comment := ended && len(text) == 0, bytes.HasPrefix(text, []byte("--"))
	idle := s.lex.state == inCode && !s.stmt.begun
	switch {
	case idle && bytes.HasPrefix(text, []byte{'\\'}):
		return s.command(text, ended)
	case s.version == "":
		return nil
	case s.lex.state == inCode && (blank || comment):
		s.drop = true
		s.complete = s.complete || idle && string(text) == dumpEnd
	case s.body != nil && s.lex.state == inDollar:
		s.drop = ended && (blank || comment) && !bytes.Contains(piece, s.lex.tag) && s.idleInBody(text)
	case idle && !s.started:
		return s.header(text, ended)
	}
	return nil
}

// idleInBody tells whether a blank or comment line of a function's body may go: it lies in none of its literals, and
// it neither opens nor ends a block comment.
func (s *stream) idleInBody(text []byte) bool {
	switch s.body.state {
	case inCode:
		return true
	case inBlock:
		return !bytes.Contains(text, []byte("*/")) && !bytes.Contains(text, []byte("/*"))
	}
	return false
}

// maxCommand bounds a line of psql's, in bytes: a database's name and some words.
const maxCommand = 4 << 10

// command takes a line of psql's own. pg_dump writes three; any other would be run by psql at the restore.
func (s *stream) command(text []byte, ended bool) error {
	s.meta, s.drop = true, true
	word, _, _ := bytes.Cut(text, []byte{' '})
	switch {
	case !ended && len(text) < maxCommand:
		return nil // the SQL ends here, which the caller sees
	case string(word) == `\restrict` || string(word) == `\unrestrict`:
		if s.version == "" {
			s.drop = false
			s.note("it holds " + string(word) + " with a random key: the hash is another each time, and an older psql stops there")
		}
		return nil
	case string(word) == `\connect` && !s.started && s.version != "":
		return nil
	}
	return fmt.Errorf("%w: the command %.40q of psql", ErrUnexpected, word)
}

// header takes the beginning of a statement before the first CREATE SCHEMA, TABLE or FUNCTION.
func (s *stream) header(text []byte, ended bool) error {
	line := string(text[:min(len(text), 256)])
	begins := func(prefixes ...string) bool {
		for _, p := range prefixes {
			if strings.HasPrefix(line, p) {
				return true
			}
		}
		return false
	}
	switch {
	case begins("SET standard_conforming_strings = off"), ended && begins("SET client_encoding") && !strings.Contains(line, "'UTF8'"):
		// The settings go, so what follows would mean something else; and the reader above takes them for granted.
		return fmt.Errorf("%w: %s", ErrUnexpected, line)
	case begins("SET", "SELECT", "CREATE DATABASE"):
		s.purge = true
	case begins("CREATE SCHEMA", "CREATE TABLE", "CREATE FUNCTION"):
		s.started = true
	case begins("ALTER DATABASE", "GRANT", "REVOKE"):
		// Kwil's tool keeps them too. They name the old database, which a new server may not have.
		words := strings.Fields(line)
		s.note("a statement about the database itself is in the state: " + strings.Join(words[:min(len(words), 4)], " ") + " …")
	}
	return nil
}

// note keeps what a person should know, once.
func (s *stream) note(text string) {
	if !slices.Contains(s.state.Notes, text) {
		s.state.Notes = append(s.state.Notes, text)
	}
}

// word takes a keyword or an unquoted name of a statement.
func (s *stream) word(w []byte) {
	st := &s.stmt
	word := strings.ToUpper(string(w))
	if st.words < len(st.first) {
		st.first[st.words] = word
	}
	if st.previous == "LANGUAGE" {
		st.language = strings.ToLower(word)
	}
	st.begun = true
	st.words++
	st.previous = word
}

// symbol takes any other byte of a statement; a quote stands for its literal.
func (s *stream) symbol(c byte) {
	st := &s.stmt
	if c != ';' || st.copyFrom != "" {
		st.begun = true
		st.previous = ""
		return
	}
	done := statement{head: st.head[:0]}
	if st.first[0] == "COPY" {
		done.copyFrom = copyTable(st)
	}
	s.stmt = done
}

// dollarQuote begins and ends the reading of a function's body, where it is in a language whose lexical structure is
// SQL's.
func (s *stream) dollarQuote(opening bool) {
	st := &s.stmt
	s.body = nil
	if opening && st.first[0] == "CREATE" && (st.first[1] == "FUNCTION" || st.first[1] == "PROCEDURE") &&
		(st.language == "plpgsql" || st.language == "sql") {
		s.body = &lexer{}
	}
}

func (s *stream) inBody(b []byte) {
	if s.body != nil {
		s.body.feed(b)
	}
}

// keepHead gathers the text of a COPY statement. A name may hold a line break, so it may take several lines.
func (st *statement) keepHead(piece []byte) {
	const verb = "COPY "
	if !st.begun && !bytes.HasPrefix(piece, []byte(verb)) {
		st.head = st.head[:0]
		return
	}
	if (!st.begun || len(st.head) > 0) && len(st.head) < maxCopyHead {
		st.head = append(st.head, piece[:min(len(piece), maxCopyHead)]...)
	}
}

// copyHead is the one form in which pg_dump writes a COPY (dumpTableData_copy of pg_dump.c; names as fmtId quotes
// them): no comment stands in it and no line ends in it, but within a quoted name. A table without columns has no list.
var copyHead = func() *regexp.Regexp {
	const name = `(?:[a-z_][a-z0-9_]*|"(?:[^"]|"")+")`
	const list = `(?:\(` + name + `(?:, ` + name + `)*\))?`
	return regexp.MustCompile(`^COPY (` + name + `(?:\.` + name + `)?) ` + list + ` ?FROM stdin;\n?$`)
}()

// copyTable is the table's name in the text of a COPY that has ended; "?" where it isn't one of pg_dump's.
func copyTable(st *statement) string {
	if parts := copyHead.FindSubmatch(st.head); parts != nil {
		return string(parts[1])
	}
	return unknownTable
}

// unknownTable stands for a COPY in a form that pg_dump doesn't write: what follows can't be told from SQL.
const unknownTable = "?"
