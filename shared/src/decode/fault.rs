//! Why a record is a dead letter, in words for its owner.

use crate::columns::column_path;

/// How much of a value a message shows, in characters.
const SHOWN_CHARS: usize = 64;

/// What is wrong with one record. Boxed where it travels, so that the good path stays small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Names from the innermost outwards; empty when the record as a whole is at fault.
    path: Vec<String>,
    message: String,
    about_column: bool,
}

pub(super) type Result<T, E = Box<Fault>> = std::result::Result<T, E>;

impl Fault {
    /// The record as a whole is at fault.
    #[cold]
    pub(super) fn record(message: impl Into<String>) -> Box<Self> {
        Box::new(Self { path: vec![], message: message.into(), about_column: false })
    }

    /// The value of a column is; the names follow by [`Fault::within`].
    #[cold]
    pub(super) fn value(message: impl Into<String>) -> Box<Self> {
        Box::new(Self { path: vec![], message: message.into(), about_column: true })
    }

    /// Adds the name of what holds the value.
    #[cold]
    pub(super) fn within(mut self: Box<Self>, name: &str) -> Box<Self> {
        if self.about_column {
            self.path.push(name.to_owned());
        }
        self
    }

    /// Adds by which schema the record was read.
    #[cold]
    pub(super) fn of_schema(mut self: Box<Self>, id: impl std::fmt::Display) -> Box<Self> {
        self.message = format!("{} (schema {id})", self.message);
        self
    }

    pub(super) fn message(mut self) -> String {
        if self.path.is_empty() {
            return self.message;
        }
        self.path.reverse();
        format!("column `{}`: {}", column_path(&self.path), self.message)
    }
}

/// `text`, cut to what a message can show, in double quotes, control characters escaped.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}{}", cut(text), if cut(text).len() < text.len() { "…" } else { "" })
}

/// `text`, cut to what a message can show; what cannot be seen is escaped.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for c in cut(text).chars() {
        if c.is_control() || c == '\u{feff}' { shown.extend(c.escape_debug()) } else { shown.push(c) }
    }
    if cut(text).len() < text.len() {
        shown.push('…');
    }
    shown
}

fn cut(text: &str) -> &str {
    text.char_indices().nth(SHOWN_CHARS).map_or(text, |(end, _)| &text[..end])
}
