//! The text of the configuration file and the places in it, also of what stands inside its strings.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use super::{ConfigError, Place};

/// The file's text and all that was found wrong with it so far.
#[derive(Debug)]
pub(super) struct Source<'t> {
    pub(super) file: String,
    pub(super) text: &'t str,
    errors: RefCell<Vec<ConfigError>>,
}

impl<'t> Source<'t> {
    pub(super) fn new(file: String, text: &'t str) -> Self {
        Self { file, text, errors: RefCell::default() }
    }

    /// Where the byte at `offset` stands.
    pub(super) fn place(&self, offset: usize) -> Place {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
    }

    /// Notes an error at the byte `offset`.
    pub(super) fn error(&self, offset: usize, message: impl Into<String>) {
        self.error_at(self.place(offset), message);
    }

    pub(super) fn error_at(&self, place: Place, message: impl Into<String>) {
        let error =
            ConfigError { file: self.file.clone(), line: place.line, column: place.column, message: message.into() };
        self.errors.borrow_mut().push(error);
    }

    /// All errors in the order of the file.
    pub(super) fn into_errors(self) -> Vec<ConfigError> {
        let mut errors = self.errors.into_inner();
        errors.sort_by(|a, b| (a.line, a.column, &a.message).cmp(&(b.line, b.column, &b.message)));
        errors.dedup();
        errors
    }
}

/// Where the characters of a configured text stand in the file: through TOML's escapes, the newline that TOML drops
/// behind `"""`, and `${NAME}`, whose value stands where `${NAME}` does.
#[derive(Debug, Clone, Default)]
pub struct TextPlaces {
    /// One per character of the text, and one for its end.
    places: Arc<[Place]>,
    /// The index of the first character of each line of the text.
    lines: Arc<[usize]>,
}

impl TextPlaces {
    /// The place in the file of the character at `line` and `column` of the text, both from 1.
    ///
    /// What lies past the end of a line or of the text is taken as its end.
    pub fn place(&self, line: usize, column: usize) -> Place {
        let Some(last) = self.places.len().checked_sub(1) else { return Place::default() };
        let line = line.saturating_sub(1);
        let Some(&start) = self.lines.get(line) else { return self.places[last].clone() };
        let end = self.lines.get(line + 1).map_or(last, |next| next - 1);
        self.places[(start + column.saturating_sub(1)).min(end)].clone()
    }

    pub(super) fn new(text: &str, offsets: &[usize], source: &Source<'_>) -> Self {
        let mut places = Vec::with_capacity(offsets.len());
        let mut known = (0, Place { line: 1, column: 1 });
        for &offset in offsets {
            // The offsets ascend: count on from the last place, so that this stays linear.
            let (from, mut place) = known;
            for character in source.text[from..offset.max(from)].chars() {
                match character {
                    '\n' => place = Place { line: place.line + 1, column: 1 },
                    _ => place.column += 1,
                }
            }
            places.push(place.clone());
            known = (offset.max(from), place);
        }
        let after_newline = text.chars().enumerate().filter(|(_, c)| *c == '\n').map(|(i, _)| i + 1);
        Self { places: places.into(), lines: std::iter::once(0).chain(after_newline).collect() }
    }
}

/// A text from the file, with `${NAME}` replaced.
#[derive(Debug, Clone)]
pub(super) struct Text {
    pub(super) value: String,
    /// The whole TOML string, quotes included.
    pub(super) span: Range<usize>,
    pub(super) places: TextPlaces,
    /// Whether `${NAME}` stood in it.
    pub(super) substituted: bool,
}

/// The characters of a TOML string with the byte offsets in the file that they come from, and the offset of its end.
///
/// `value` is what the TOML parser made of it: if the two disagree, every character is placed at the string's start.
pub(super) fn characters(value: &str, span: &Range<usize>, text: &str) -> (Vec<(char, usize)>, usize) {
    let raw = text.get(span.clone()).unwrap_or_default();
    if let Some((characters, end)) = unescape(raw) {
        let placed: Vec<(char, usize)> = characters.into_iter().map(|(c, at)| (c, span.start + at)).collect();
        if placed.iter().map(|(c, _)| *c).eq(value.chars()) {
            return (placed, span.start + end);
        }
    }
    (value.chars().map(|c| (c, span.start)).collect(), span.start)
}

/// `raw` with its quotes, as TOML 1.1 reads it; the end is the offset of the closing quotes.
fn unescape(raw: &str) -> Option<(Vec<(char, usize)>, usize)> {
    let (quotes, basic) = ["\"\"\"", "'''", "\"", "'"]
        .into_iter()
        .find(|q| raw.len() >= 2 * q.len() && raw.starts_with(q) && raw.ends_with(q))
        .map(|quotes| (quotes, quotes.starts_with('"')))?;
    let end = raw.len() - quotes.len();
    let mut at = quotes.len();
    if quotes.len() == 3 {
        let body = &raw[at..end];
        at += if body.starts_with("\r\n") { 2 } else { usize::from(body.starts_with('\n')) };
    }
    let mut characters = Vec::new();
    while at < end {
        let rest = &raw[at..end];
        let first = rest.chars().next()?;
        if first != '\\' || !basic {
            characters.push((first, at));
            at += first.len_utf8();
            continue;
        }
        let escape = rest.chars().nth(1)?;
        let digits = |count: usize| {
            let hex = rest.get(2..2 + count)?;
            Some((char::from_u32(u32::from_str_radix(hex, 16).ok()?)?, 2 + count))
        };
        let (character, length) = match escape {
            'b' => ('\u{8}', 2),
            't' => ('\t', 2),
            'n' => ('\n', 2),
            'f' => ('\u{c}', 2),
            'r' => ('\r', 2),
            'e' => ('\u{1b}', 2),
            '"' | '\\' => (escape, 2),
            'x' => digits(2)?,
            'u' => digits(4)?,
            'U' => digits(8)?,
            c if c.is_ascii_whitespace() => {
                // A backslash at a line's end swallows all white space up to the next character.
                let swallowed = rest[1..].len() - rest[1..].trim_start_matches([' ', '\t', '\r', '\n']).len();
                at += 1 + swallowed;
                continue;
            }
            _ => return None,
        };
        characters.push((character, at));
        at += length;
    }
    Some((characters, end))
}
