//! `where`, `columns`, `order` and `limit` of `GET /v1/views/{view}`, in SQL's words.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;

use crate::error::{Error, Result};

use super::{Named, Query};

/// Rows that are answered at most when no `limit` is given.
pub(crate) const DEFAULT_LIMIT_ROWS: usize = 10_000;

/// The parameters as they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Select {
    pub filter: Option<String>,
    pub columns: Option<String>,
    pub order: Option<String>,
    pub limit: Option<usize>,
}

impl Select {
    /// The statement over `view`; one row more than the default limit when no limit was given, so that it shows
    /// whether there was more.
    ///
    /// Each parameter is parsed by itself to its end and written anew: none can end its clause and begin another. None
    /// may name another table than the view.
    ///
    /// # Errors
    /// `bad_parameter` with the name of the parameter.
    pub(crate) fn query(&self, view: &str) -> Result<Query> {
        let columns = match &self.columns {
            Some(text) => list(text, |p| p.parse_comma_separated(Parser::parse_select_item), "columns")?,
            None => "*".to_owned(),
        };
        let mut sql = format!("SELECT {columns} FROM \"{}\"", view.replace('"', "\"\""));
        if let Some(text) = &self.filter {
            let filter = parse(text, |p| p.parse_expr()).map_err(|e| Error::bad_parameter("where", e))?;
            sql += &format!(" WHERE ({filter})");
        }
        if let Some(text) = &self.order {
            sql += &format!(
                " ORDER BY {}",
                list(text, |p| p.parse_comma_separated(Parser::parse_order_by_expr), "order")?
            );
        }
        sql += &format!(" LIMIT {}", self.limit.unwrap_or(DEFAULT_LIMIT_ROWS + 1));
        let query = Query::parse(&sql).map_err(|e| Error::bad_parameter(&self.names(), e.message))?;
        if query.tables()?.iter().any(|t| *t != Named::Plain(view.to_owned())) {
            let alone = self.parameters();
            let wrong = alone.iter().find(|(.., select)| alone.len() > 1 && select.query(view).is_err());
            let name = wrong.map_or_else(|| self.names(), |(name, ..)| (*name).to_owned());
            let message = "only the view's own columns may be named; use POST /v1/query";
            return Err(Error::bad_parameter(&name, message));
        }
        Ok(query)
    }

    /// Those that were given, with their texts, and what each asks for alone (no row of it).
    pub(crate) fn parameters(&self) -> Vec<(&'static str, &str, Self)> {
        let none = Self { limit: Some(0), ..Self::default() };
        [
            ("where", &self.filter, Self { filter: self.filter.clone(), ..none.clone() }),
            ("columns", &self.columns, Self { columns: self.columns.clone(), ..none.clone() }),
            ("order", &self.order, Self { order: self.order.clone(), ..none }),
        ]
        .into_iter()
        .filter_map(|(name, text, alone)| Some((name, text.as_deref()?, alone)))
        .collect()
    }

    fn names(&self) -> String {
        self.parameters().iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ")
    }
}

fn list<T: std::fmt::Display>(
    text: &str,
    parser: impl FnOnce(&mut Parser<'_>) -> std::result::Result<Vec<T>, ParserError>,
    name: &str,
) -> Result<String> {
    let items = parse(text, parser).map_err(|e| Error::bad_parameter(name, e))?;
    Ok(items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

fn parse<T>(
    text: &str,
    parser: impl FnOnce(&mut Parser<'_>) -> std::result::Result<T, ParserError>,
) -> std::result::Result<T, String> {
    let readable = |e: ParserError| match e {
        ParserError::TokenizerError(m) | ParserError::ParserError(m) => m,
        ParserError::RecursionLimitExceeded => "it is nested too deeply".to_owned(),
    };
    let mut tokens = Parser::new(&GenericDialect {}).try_with_sql(text).map_err(readable)?;
    let parsed = parser(&mut tokens).map_err(readable)?;
    let rest = tokens.peek_token();
    match rest.token {
        Token::EOF => Ok(parsed),
        _ => Err(format!("`{}` is not expected here{}", rest.token, rest.span.start)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn check(select: &Select, expected: &str) {
        let found = match select.query("events per hour") {
            Ok(query) => query.statement.to_string(),
            Err(error) => {
                assert_eq!(error.code, Code::BadParameter);
                error.message
            }
        };
        assert_eq!(found, expected);
    }

    fn filter(text: &str) -> Select {
        Select { filter: Some(text.to_owned()), ..Select::default() }
    }

    #[test]
    fn parameters_become_clauses() {
        check(&Select::default(), r#"SELECT * FROM "events per hour" LIMIT 10001"#);
        check(
            &Select {
                filter: Some("type = 'a' OR n > 1".into()),
                columns: Some("hour, n * 2 AS twice".into()),
                order: Some("n DESC NULLS LAST, hour".into()),
                limit: Some(3),
            },
            r#"SELECT hour, n * 2 AS twice FROM "events per hour" WHERE (type = 'a' OR n > 1) ORDER BY n DESC NULLS LAST, hour LIMIT 3"#,
        );
    }

    #[test]
    fn a_parameter_cannot_leave_its_clause() {
        check(&filter("1=1) UNION SELECT 1"), "parameter `where`: `)` is not expected here at Line: 1, Column: 4");
        check(&filter("1=1; DROP TABLE a"), "parameter `where`: `;` is not expected here at Line: 1, Column: 4");
        check(
            &filter("n IN (SELECT n FROM other)"),
            "parameter `where`: only the view's own columns may be named; use POST /v1/query",
        );
        let both = Select { order: Some("(SELECT max(n) FROM other)".into()), ..filter("n = 1") };
        check(&both, "parameter `order`: only the view's own columns may be named; use POST /v1/query");
        let columns = Select { columns: Some("n FROM other".into()), ..Select::default() };
        check(&columns, "parameter `columns`: `FROM` is not expected here at Line: 1, Column: 3");
        let order = Select { order: Some("n LIMIT 5".into()), ..Select::default() };
        check(&order, "parameter `order`: `LIMIT` is not expected here at Line: 1, Column: 3");
        // A comment ends with the parameter, too.
        check(&filter("n = 1 --"), r#"SELECT * FROM "events per hour" WHERE (n = 1) LIMIT 10001"#);
    }
}
