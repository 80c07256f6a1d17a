package kwil

import "bytes"

// lexState is where in SQL's lexical structure a byte stands (the manual's chapter "Lexical Structure").
type lexState int

const (
	inCode      lexState = iota
	inQuote              // '…', standard_conforming_strings on: a backslash is a backslash
	inEscape             // E'…', where a backslash escapes
	inIdent              // "…"
	inComment            // -- to the end of the line
	inBlock              // /* … */, which nest
	inDollarTag          // $ta, before it is clear whether it opens a quote
	inDollar             // $tag$ … $tag$
)

// lexer walks SQL byte by byte, so that a token may lie across two pieces of a line that is longer than the buffer.
type lexer struct {
	state   lexState
	prev    byte     // the byte before, where it may begin or end a comment; else 0
	word    []byte   // the identifier or keyword at hand, at most maxWord bytes
	wordLen int      // its real length
	closed  lexState // the kind of literal that ended just before: 'a''b' goes on with it
	skip    bool     // the next byte of an E'…' is escaped
	depth   int      // of nested block comments
	tag     []byte   // the $tag$ at hand
	match   int      // how much of the closing tag was seen

	backslash bool               // a backslash stood in code: psql takes it as a command of its own
	onWord    func(word []byte)  // called at the end of each unquoted word in code; may be nil
	onByte    func(c byte)       // called for each other byte of code that isn't white space; may be nil
	onBody    func(body []byte)  // called with what lies in a dollar quote, as it comes; may be nil
	onDollar  func(opening bool) // called where a dollar quote begins and ends; may be nil
}

// maxWord is enough for every keyword and for names of 63 bytes.
const maxWord = 64

// feed takes the next bytes, a part of one line.
func (l *lexer) feed(b []byte) {
	for len(b) > 0 {
		switch l.state {
		case inQuote, inIdent:
			b = l.skipTo(b)
		case inEscape:
			b = l.escape(b)
		case inComment:
			b = l.comment(b)
		case inDollar:
			b = l.dollar(b)
		case inBlock:
			l.block(b[0])
			b = b[1:]
		case inDollarTag:
			if l.dollarTag(b[0]) {
				b = b[1:]
			}
		default:
			l.code(b[0])
			b = b[1:]
		}
	}
}

// skipTo runs to the end of a literal or a quoted name.
func (l *lexer) skipTo(b []byte) []byte {
	quote := byte('\'')
	if l.state == inIdent {
		quote = '"'
	}
	i := bytes.IndexByte(b, quote)
	if i < 0 {
		return nil
	}
	l.closed, l.state = l.state, inCode
	return b[i+1:]
}

func (l *lexer) escape(b []byte) []byte {
	for i, c := range b {
		switch {
		case l.skip:
			l.skip = false
		case c == '\\':
			l.skip = true
		case c == '\'':
			l.closed, l.state = inEscape, inCode
			return b[i+1:]
		}
	}
	return nil
}

func (l *lexer) comment(b []byte) []byte {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return nil
	}
	l.state = inCode
	return b[i+1:]
}

func (l *lexer) block(c byte) {
	switch {
	case l.prev == '*' && c == '/':
		l.depth--
		l.prev = 0
		if l.depth == 0 {
			l.state = inCode
		}
	case l.prev == '/' && c == '*':
		l.depth++
		l.prev = 0
	default:
		l.prev = c
	}
}

// dollarTag reads a possible $tag$ and tells whether c was used up.
func (l *lexer) dollarTag(c byte) bool {
	switch {
	case c == '$':
		l.tag = append(l.tag, c)
		l.state, l.match = inDollar, 0
		if l.onDollar != nil {
			l.onDollar(true)
		}
		return true
	case isWordByte(c) && c != '$' && (len(l.tag) > 1 || c < '0' || c > '9'):
		l.tag = append(l.tag, c)
		return true
	}
	l.state = inCode // $1, or a lone dollar
	return false
}

func (l *lexer) dollar(b []byte) []byte {
	for i := 0; i < len(b); i++ {
		if l.match == 0 {
			next := bytes.IndexByte(b[i:], '$')
			if next < 0 {
				break
			}
			i += next
		}
		switch b[i] {
		case l.tag[l.match]:
			l.match++
		case '$':
			l.match = 1
		default:
			l.match = 0
		}
		if l.match == len(l.tag) {
			l.body(b[:i+1])
			l.state = inCode
			if l.onDollar != nil {
				l.onDollar(false)
			}
			return b[i+1:]
		}
	}
	l.body(b)
	return nil
}

// body hands on what lies in a dollar quote, the closing tag included: inside, it can't open anything that matters.
func (l *lexer) body(b []byte) {
	if l.onBody != nil {
		l.onBody(b)
	}
}

func (l *lexer) code(c byte) {
	if before := l.prev; before != 0 {
		l.prev = 0
		switch {
		case before == '-' && c == '-':
			l.state = inComment
			return
		case before == '/' && c == '*':
			l.state, l.depth = inBlock, 1
			return
		}
		l.symbol(before)
	}
	if isWordByte(c) && (c != '$' || l.wordLen > 0) {
		l.closed = inCode
		l.wordLen++
		if len(l.word) < maxWord {
			l.word = append(l.word, c)
		}
		return
	}
	escape := l.wordLen == 1 && l.word[0]|0x20 == 'e'
	l.endWord()
	switch c {
	case '-', '/':
		l.prev = c // perhaps a comment's
		return
	case '\'':
		// Both 'a''b' and, over a line break, 'a' 'b' are one literal: they go on by the rules they began with.
		if l.state = inQuote; escape || l.closed == inEscape {
			l.state = inEscape
		}
	case '"':
		l.state = inIdent
	case '$':
		l.state, l.tag = inDollarTag, append(l.tag[:0], c)
	case '\\':
		l.backslash = true
	}
	if !isSpace(c) {
		l.symbol(c)
	}
}

func (l *lexer) symbol(c byte) {
	l.closed = inCode
	if l.onByte != nil {
		l.onByte(c)
	}
}

func (l *lexer) endWord() {
	if l.wordLen == 0 {
		return
	}
	if l.onWord != nil {
		l.onWord(l.word)
	}
	l.word, l.wordLen = l.word[:0], 0
}

// isWordByte tells what can stand in an unquoted name; bytes above ASCII are letters to PostgreSQL.
func isWordByte(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '_' || c == '$' || c >= 0x80
}

// isSpace is PostgreSQL's white space, and Go's of bytes.TrimSpace where it is ASCII.
func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }
