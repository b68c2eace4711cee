//! Statements: what may be asked, and which tables it names.

mod select;
mod single;

use std::collections::BTreeSet;

use datafusion::common::DataFusionError;
use datafusion::common::TableReference;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;

pub(crate) use select::{DEFAULT_LIMIT_ROWS, Select};

use crate::error::{Code, Error, Result};

/// One SELECT (or EXPLAIN of one), parsed.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    statement: Statement,
}

/// A table that a statement names, in the three namespaces that there are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Named {
    /// A view, a stream or a dimension table.
    Plain(String),
    DeadLetters(String),
    ViewErrors(String),
}

/// The schema of `dead_letters.<stream>`.
pub(crate) const DEAD_LETTERS: &str = "dead_letters";
/// The schema of `view_errors.<view>`.
pub(crate) const VIEW_ERRORS: &str = "view_errors";

impl Query {
    /// # Errors
    /// `bad_sql` with the place.
    pub(crate) fn parse(sql: &str) -> Result<Self> {
        let mut statements = DFParser::parse_sql(sql).map_err(|e| bad_sql(&e))?;
        let statement = statements.pop_front().ok_or_else(|| Error::new(Code::BadSql, "the statement is empty"))?;
        if !statements.is_empty() {
            return Err(Error::new(Code::BadSql, "one statement at a time, please"));
        }
        let query = match &statement {
            Statement::Explain(explain) => explain.statement.as_ref(),
            other => other,
        };
        match query {
            Statement::Statement(inner) if matches!(inner.as_ref(), SqlStatement::Query(_)) => Ok(Self { statement }),
            _ => Err(Error::new(Code::BadSql, "only SELECT is answered here (and EXPLAIN of one)")),
        }
    }

    /// The tables that it names.
    ///
    /// # Errors
    /// `bad_sql` for a name of more parts than there are.
    pub(crate) fn tables(&self) -> Result<BTreeSet<Named>> {
        let (tables, _) = resolve_table_references(&self.statement, true).map_err(|e| bad_sql(&e))?;
        tables.into_iter().map(|t| named(&t)).collect()
    }

    /// The plan over the tables of `state`; nothing but a query passes.
    ///
    /// # Errors
    /// `bad_sql` with the place where it is known.
    pub(crate) async fn plan(&self, state: &SessionState) -> Result<LogicalPlan> {
        let plan = state.statement_to_plan(self.statement.clone()).await.map_err(|e| bad_sql(&e))?;
        let only_queries = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        only_queries.verify_plan(&plan).map_err(|e| bad_sql(&e))?;
        single::checked(plan).map_err(|e| bad_sql(&e))
    }
}

fn named(table: &TableReference) -> Result<Named> {
    match (table.catalog(), table.schema()) {
        (None, None | Some("public")) => Ok(Named::Plain(table.table().to_owned())),
        (None, Some(DEAD_LETTERS)) => Ok(Named::DeadLetters(table.table().to_owned())),
        (None, Some(VIEW_ERRORS)) => Ok(Named::ViewErrors(table.table().to_owned())),
        _ => Err(Error::new(
            Code::BadSql,
            format!(
                "there is no table `{table}`: a name is a view's, a stream's or a table's, `{DEAD_LETTERS}.<stream>` or `{VIEW_ERRORS}.<view>`"
            ),
        )),
    }
}

/// A statement that is wrong, with the place of the first thing that is.
pub(crate) fn bad_sql(error: &DataFusionError) -> Error {
    Error::new(Code::BadSql, message(error))
}

/// The engine's message for people: without its layers, with the place.
pub(crate) fn message(error: &DataFusionError) -> String {
    if let Some(diagnostic) = error.diagnostic() {
        let help: String = diagnostic.helps.iter().map(|h| format!("; {}", h.message)).collect();
        return match diagnostic.span {
            Some(span) => {
                format!("{} at Line: {}, Column: {}{help}", diagnostic.message, span.start.line, span.start.column)
            }
            None => format!("{}{help}", diagnostic.message),
        };
    }
    let text = error.find_root().strip_backtrace();
    let text = text.lines().next().unwrap_or_default();
    // The kinds of errors that the engine tells apart mean nothing to who wrote the statement.
    let kinds = ["Error during planning: ", "Execution error: ", "Schema error: ", "Arrow error: ", "External error: "];
    let mut text = kinds.iter().fold(text, |text, kind| text.strip_prefix(kind).unwrap_or(text));
    if let Some(inner) = text.strip_prefix("SQL error: ParserError(\"").and_then(|t| t.strip_suffix("\")")) {
        text = inner;
    }
    // Every signature that there is would follow.
    if let Some((function, _)) = text.split_once(" failed to match any signature") {
        let function = function.strip_prefix("Internal error: ").unwrap_or(function).replace("Function", "function");
        return format!("{function} does not take these arguments");
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_queries_pass() {
        for sql in [
            "SELECT 1",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "(SELECT 1) UNION ALL SELECT 2",
            "EXPLAIN SELECT 1",
            "VALUES (1)",
        ] {
            Query::parse(sql).unwrap();
        }
        let refused = [
            "",
            "SELECT 1; SELECT 2",
            "DROP TABLE a",
            "SET a = 1",
            "COPY a TO 'b'",
            "INSERT INTO a VALUES (1)",
            "CREATE VIEW a AS SELECT 1",
            "CREATE EXTERNAL TABLE a STORED AS CSV LOCATION '/etc/passwd'",
            "SHOW TABLES",
            "EXPLAIN DROP TABLE a",
            "BEGIN",
            "SELECT * FROM a WHERE )",
        ];
        for sql in refused {
            assert_eq!(Query::parse(sql).unwrap_err().code, Code::BadSql, "{sql}");
        }
    }

    #[test]
    fn a_statement_names_its_tables() {
        let query = Query::parse("WITH c AS (SELECT * FROM A) SELECT * FROM c, dead_letters.s JOIN view_errors.v ON true WHERE x IN (SELECT y FROM \"B\")").unwrap();
        let expected = [
            Named::Plain("B".into()),
            Named::Plain("a".into()),
            Named::DeadLetters("s".into()),
            Named::ViewErrors("v".into()),
        ];
        assert_eq!(query.tables().unwrap().into_iter().collect::<Vec<_>>(), expected);
        assert!(Query::parse("SELECT * FROM information_schema.tables").unwrap().tables().is_err());
    }

    #[test]
    fn a_parser_error_names_the_place() {
        let error = Query::parse("SELECT *\nFROM a WHERE )").unwrap_err();
        assert!(error.message.contains("Line: 2, Column: 14"), "{}", error.message);
    }
}
