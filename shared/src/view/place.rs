//! Places in the SQL of a view, for messages.

use datafusion::common::{DataFusionError, SchemaError, Spans};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

/// Line and column in the SQL, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SqlPlace {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl SqlPlace {
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

impl From<Location> for SqlPlace {
    fn from(location: Location) -> Self {
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).max(1);
        Self { line: number(location.line), column: number(location.column) }
    }
}

/// The tokens of a view's SQL. Text that does not tokenize has none, and all its places are its start.
#[derive(Debug)]
pub(crate) struct SqlText {
    tokens: Vec<TokenWithSpan>,
}

impl SqlText {
    pub(crate) fn new(sql: &str) -> Self {
        let mut tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().unwrap_or_default();
        tokens.retain(|t| !matches!(t.token, Token::Whitespace(_)));
        Self { tokens }
    }

    /// The first word of the text.
    pub(crate) fn start(&self) -> SqlPlace {
        self.tokens.first().map_or(SqlPlace::START, |t| t.span.start.into())
    }

    /// The `nth` (from 0) occurrence of the name `word`, else the start.
    pub(crate) fn word(&self, word: &str, nth: usize) -> SqlPlace {
        self.place_of(nth, |token, _| is_word(token, word))
    }

    /// Where the function `name`, or one of its other names, is called.
    pub(crate) fn call(&self, names: &[&str]) -> SqlPlace {
        let named = |token: &Token| names.iter().any(|name| is_word(token, name));
        let called = self
            .tokens
            .windows(2)
            .find(|pair| named(&pair[0].token) && pair[1].token == Token::LParen)
            .map(|pair| pair[0].span.start.into());
        // current_date and its like stand without parentheses.
        called.unwrap_or_else(|| self.place_of(0, |token, _| named(token)))
    }

    pub(crate) fn keyword(&self, keyword: Keyword) -> SqlPlace {
        self.place_of(0, |token, _| matches!(token, Token::Word(w) if w.keyword == keyword))
    }

    /// Behind the first semicolon that something follows.
    pub(crate) fn second_statement(&self) -> SqlPlace {
        self.place_of(0, |_, before| before == Some(&Token::SemiColon))
    }

    pub(crate) fn spans(&self, spans: &Spans) -> Option<SqlPlace> {
        let start = spans.first()?.start;
        Some(Location::new(start.line, start.column).into())
    }

    fn place_of(&self, nth: usize, is: impl Fn(&Token, Option<&Token>) -> bool) -> SqlPlace {
        let mut before = None;
        let mut seen = 0;
        for token in &self.tokens {
            if is(&token.token, before) {
                if seen == nth {
                    return token.span.start.into();
                }
                seen += 1;
            }
            before = Some(&token.token);
        }
        self.start()
    }

    /// Where `error` of the parser or planner points to.
    pub(crate) fn of_error(&self, error: &DataFusionError) -> SqlPlace {
        if let Some(span) = diagnostic_span(error) {
            return span;
        }
        match error.find_root() {
            DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
                SchemaError::FieldNotFound { field, .. } | SchemaError::AmbiguousReference { field } => {
                    self.spans(field.spans()).unwrap_or_else(|| self.word(field.name(), 0))
                }
                SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
                    self.word(name, 1)
                }
            },
            other => self.in_text(&other.strip_backtrace()),
        }
    }

    /// `Line: 1, Column: 8` of the parser's messages, else the first quoted name that the SQL has too.
    fn in_text(&self, message: &str) -> SqlPlace {
        if let Some(place) = line_and_column(message) {
            return place;
        }
        message
            .split(['\'', '"', '`'])
            .skip(1)
            .step_by(2)
            .map(|quoted| quoted.rsplit('.').next().unwrap_or(quoted))
            .find(|name| self.tokens.iter().any(|t| is_word(&t.token, name)))
            .map_or_else(|| self.start(), |name| self.word(name, 0))
    }
}

fn diagnostic_span(error: &DataFusionError) -> Option<SqlPlace> {
    let start = error.diagnostic()?.span?.start;
    Some(Location::new(start.line, start.column).into())
}

fn line_and_column(message: &str) -> Option<SqlPlace> {
    let (_, rest) = message.rsplit_once("Line: ")?;
    let (line, rest) = rest.split_once(", Column: ")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some(SqlPlace { line: line.parse().ok()?, column: rest[..digits].parse().ok()? })
}

fn is_word(token: &Token, word: &str) -> bool {
    match token {
        Token::Word(w) if w.quote_style.is_some() => w.value == word,
        Token::Word(w) => w.value.eq_ignore_ascii_case(word),
        _ => false,
    }
}
