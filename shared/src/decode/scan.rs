//! A strict scanner of one JSON text (RFC 8259): it says where a value begins and ends and what it is made of,
//! and makes no values itself.
//!
//! It is our own because the meaning of an event hangs on it: the answer of a general parser depends on features that any
//! crate of the build may switch on (`serde_json/arbitrary_precision`), and `arrow-json` reads a stream of texts, so that
//! two objects in one record would be two rows and half an object could be completed by the next record.

use super::fault::{Fault, Result, shown};

/// A position in one record's text.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

/// A string as it stands in the text, without its quotes.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawStr<'a> {
    pub(super) raw: &'a str,
    pub(super) escaped: bool,
}

/// A `\uD800`–`\uDFFF` without its other half: such a string is JSON, but no text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LoneSurrogate;

impl<'a> RawStr<'a> {
    /// The text that it stands for; `scratch` holds it if it has escapes.
    pub(super) fn unescape<'s>(self, scratch: &'s mut String) -> Result<&'s str, LoneSurrogate>
    where
        'a: 's,
    {
        if !self.escaped {
            return Ok(self.raw);
        }
        scratch.clear();
        let mut rest = self.raw;
        while let Some(backslash) = rest.find('\\') {
            scratch.push_str(&rest[..backslash]);
            let escape = rest.as_bytes()[backslash + 1];
            rest = &rest[backslash + 2..];
            match escape {
                b'b' => scratch.push('\u{8}'),
                b'f' => scratch.push('\u{c}'),
                b'n' => scratch.push('\n'),
                b'r' => scratch.push('\r'),
                b't' => scratch.push('\t'),
                b'u' => {
                    let (c, after) = unicode_escape(rest)?;
                    scratch.push(c);
                    rest = after;
                }
                other => scratch.push(char::from(other)),
            }
        }
        scratch.push_str(rest);
        Ok(scratch)
    }
}

/// The character of the escape whose digits begin `text`, and what follows it.
fn unicode_escape(text: &str) -> Result<(char, &str), LoneSurrogate> {
    let (unit, rest) = (hex4(text), &text[4..]);
    match unit {
        0xD800..=0xDBFF => {
            let low = rest.strip_prefix("\\u").map(hex4).filter(|low| (0xDC00..=0xDFFF).contains(low));
            let Some(low) = low else { return Err(LoneSurrogate) };
            let c = char::from_u32(0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00));
            Ok((c.expect("a pair of surrogates is a character"), &rest[6..]))
        }
        0xDC00..=0xDFFF => Err(LoneSurrogate),
        _ => Ok((char::from_u32(unit).expect("no surrogate"), rest)),
    }
}

/// The number that the first four bytes of `text` write; the scanner has seen that they are hexadecimal digits.
fn hex4(text: &str) -> u32 {
    u32::from_str_radix(&text[..4], 16).expect("checked by the scanner")
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// The first byte of the next token, which is not taken; `None` at the end.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    /// Takes the token of one byte if it is next.
    #[inline]
    pub(super) fn take(&mut self, token: u8) -> bool {
        let taken = self.peek() == Some(token);
        self.at += usize::from(taken);
        taken
    }

    /// Where the next token begins.
    pub(super) fn start(&mut self) -> usize {
        self.peek();
        self.at
    }

    /// The text from `start` up to here.
    pub(super) fn since(&self, start: usize) -> &'a str {
        &self.text[start..self.at]
    }

    /// Nothing but blanks may follow.
    pub(super) fn end(&mut self) -> Result<()> {
        if self.peek().is_some() { Err(self.error("nothing more behind the value")) } else { Ok(()) }
    }

    /// Takes the comma between members or elements (true), or `close` (false).
    #[inline]
    pub(super) fn more(&mut self, close: u8) -> Result<bool> {
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            _ if close == b'}' => Err(self.error("`,` or `}`")),
            _ => Err(self.error("`,` or `]`")),
        }
    }

    /// A member's name and its colon.
    #[inline]
    pub(super) fn key(&mut self) -> Result<RawStr<'a>> {
        if self.peek() != Some(b'"') {
            return Err(self.error("a field's name in double quotes"));
        }
        let key = self.string()?;
        if !self.take(b':') {
            return Err(self.error("`:`"));
        }
        Ok(key)
    }

    /// A string; its opening quote is next.
    #[inline]
    pub(super) fn string(&mut self) -> Result<RawStr<'a>> {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        let mut at = start;
        let mut escaped = false;
        loop {
            at = end_of_plain(bytes, at);
            match bytes.get(at) {
                Some(b'"') => {
                    self.at = at + 1;
                    return Ok(RawStr { raw: &self.text[start..at], escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    at += match bytes.get(at + 1) {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
                        Some(b'u') if is_hex4(bytes, at + 2) => 6,
                        _ => {
                            self.at = at;
                            return Err(self.error("an escape that JSON knows"));
                        }
                    };
                }
                Some(_) => {
                    self.at = at;
                    return Err(self.error("control characters in a string to be escaped"));
                }
                None => {
                    self.at = at;
                    return Err(self.error("the string to end"));
                }
            }
        }
    }

    /// A number; its first byte is next.
    #[inline]
    pub(super) fn number(&mut self) -> Result<&'a str> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        let mut at = start + usize::from(bytes.get(start) == Some(&b'-'));
        let first = at;
        at = end_of_digits(bytes, at);
        let mut fine = at > first && (bytes[first] != b'0' || at == first + 1);
        if fine && bytes.get(at) == Some(&b'.') {
            let digits = at + 1;
            at = end_of_digits(bytes, digits);
            fine = at > digits;
        }
        if fine && matches!(bytes.get(at), Some(b'e' | b'E')) {
            let digits = at + 1 + usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
            at = end_of_digits(bytes, digits);
            fine = at > digits;
        }
        // What follows must not look like more of the number, as in `01`, `1.2.3` or `0x10`.
        if fine && !bytes.get(at).is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-' | b'_')) {
            self.at = at;
            return Ok(&self.text[start..at]);
        }
        Err(self.error("a number as JSON writes it"))
    }

    /// `true`, `false` or `null`, whose first byte is next.
    #[inline]
    pub(super) fn literal(&mut self, literal: &'static str) -> Result<()> {
        let bytes = self.text.as_bytes();
        let end = self.at + literal.len();
        let ends = !bytes.get(end).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
        if ends && bytes.get(self.at..end) == Some(literal.as_bytes()) {
            self.at = end;
            return Ok(());
        }
        Err(self.error("a value"))
    }

    /// Takes any value. Nesting is bounded by nothing but the text: `stack` is on the heap.
    pub(super) fn skip(&mut self, stack: &mut Vec<u8>) -> Result<()> {
        stack.clear();
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.string()?;
                }
                Some(b'{') => {
                    self.at += 1;
                    if !self.take(b'}') {
                        self.key()?;
                        stack.push(b'}');
                        continue;
                    }
                }
                Some(b'[') => {
                    self.at += 1;
                    if !self.take(b']') {
                        stack.push(b']');
                        continue;
                    }
                }
                Some(b't') => self.literal("true")?,
                Some(b'f') => self.literal("false")?,
                Some(b'n') => self.literal("null")?,
                Some(b'-' | b'0'..=b'9') => {
                    self.number()?;
                }
                _ => return Err(self.error("a value")),
            }
            // A value has ended: close what it ends, up to the next member or element.
            loop {
                let Some(&close) = stack.last() else { return Ok(()) };
                if self.more(close)? {
                    if close == b'}' {
                        self.key()?;
                    }
                    break;
                }
                stack.pop();
            }
        }
    }

    /// The text is not JSON at this place.
    #[cold]
    pub(super) fn error(&self, expected: &str) -> Box<Fault> {
        let found = match self.text[self.at..].chars().next() {
            Some(_) => format!("`{}`", shown(&self.text[self.at..])),
            None => "the end".into(),
        };
        Fault::record(format!("not JSON: expected {expected} at byte {}, found {found}", self.at))
    }
}

fn is_hex4(bytes: &[u8], at: usize) -> bool {
    bytes.get(at..at + 4).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
}

#[inline]
fn end_of_digits(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    at
}

/// The first byte from `at` on that is a quote, a backslash or a control character; the end if there is none.
#[inline]
fn end_of_plain(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHS: u64 = ONES << 7;
    // SUBTLE: each test sets the high bit of a byte that matches; a borrow can set one falsely, but only above a true
    // match, and only the lowest is used.
    while let Some(chunk) = bytes.get(at..at + 8) {
        let word = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        let quote = word ^ (ONES * u64::from(b'"'));
        let backslash = word ^ (ONES * u64::from(b'\\'));
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let matches = (quote.wrapping_sub(ONES) & !quote) | (backslash.wrapping_sub(ONES) & !backslash) | control;
        let matches = matches & HIGHS;
        if matches != 0 {
            return at + (matches.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(|&b| b != b'"' && b != b'\\' && b >= 0x20) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests;
