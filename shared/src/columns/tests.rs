use super::*;

fn check(ddl: &str, types: &[(&str, &str)]) -> Columns {
    let columns = parse_columns(ddl).unwrap_or_else(|e| panic!("{ddl}: {e}"));
    let got: Vec<_> = columns.schema.fields().iter().map(|f| (f.name().clone(), sql_nullable_type(f))).collect();
    let want: Vec<_> = types.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())).collect();
    assert_eq!(got, want, "{ddl}");
    // The way back reads as the same schema.
    let mut again = String::new();
    for field in columns.schema.fields() {
        sql_name(&mut again, field.name());
        again.push(' ');
        again.push_str(&sql_nullable_type(field));
        again.push_str(",\n");
    }
    assert_eq!(parse_columns(&again).unwrap().schema, columns.schema, "{again}");
    columns
}

fn check_error(ddl: &str, line: usize, column: usize, message: &str) {
    let error = parse_columns(ddl).expect_err(ddl);
    assert_eq!((error.line, error.column), (line, column), "{ddl}: {error}");
    assert!(error.message.contains(message), "{ddl}: {error}");
}

#[test]
fn every_type_of_the_closed_list_is_read() {
    check(
        "id VARCHAR NOT NULL, type varchar, actor STRUCT<login VARCHAR>, created_at TIMESTAMP",
        &[
            ("id", "VARCHAR NOT NULL"),
            ("type", "VARCHAR"),
            ("actor", "STRUCT<login VARCHAR>"),
            ("created_at", "TIMESTAMP"),
        ],
    );
    check(
        "a BOOLEAN, b INT, c BIGINT, d REAL, e DOUBLE, f DECIMAL(10,2), g DECIMAL(5), h DECIMAL, i VARBINARY, j DATE,",
        &[
            ("a", "BOOLEAN"),
            ("b", "INT"),
            ("c", "BIGINT"),
            ("d", "REAL"),
            ("e", "DOUBLE"),
            ("f", "DECIMAL(10, 2)"),
            ("g", "DECIMAL(5, 0)"),
            ("h", "DECIMAL(38, 0)"),
            ("i", "VARBINARY"),
            ("j", "DATE"),
        ],
    );
}

#[test]
fn nested_types_close_with_any_run_of_brackets() {
    let columns = check(
        "-- what a cart holds\nitems LIST<STRUCT<sku VARCHAR NOT NULL, tags LIST<LIST<LIST<VARCHAR NOT NULL>>>>> NOT NULL,
         by_day MAP<DATE, MAP<VARCHAR, STRUCT<n INT NOT NULL, raw JSON>>>, raw JSON, many LIST<JSON>, \"a.b\" STRUCT<c JSON>",
        &[
            ("items", "LIST<STRUCT<sku VARCHAR NOT NULL, tags LIST<LIST<LIST<VARCHAR NOT NULL>>>>> NOT NULL"),
            ("by_day", "MAP<DATE, MAP<VARCHAR, STRUCT<n INT NOT NULL, raw VARCHAR>>>"),
            ("raw", "VARCHAR"),
            ("many", "LIST<VARCHAR>"),
            ("a.b", "STRUCT<c VARCHAR>"),
        ],
    );
    assert_eq!(columns.json, ["by_day.value.value.raw", "raw", "many.element", "\"a.b\".c"]);
    let by_day = columns.schema.field_with_name("by_day").unwrap();
    let DataType::Map(entries, false) = by_day.data_type() else { panic!("{by_day}") };
    assert_eq!(entries.name(), "key_value");
    assert!(!entries.is_nullable());
}

#[test]
fn names_keep_their_case_and_may_be_quoted() {
    check(
        "\"Selling Price (INR)\" VARCHAR, createdAt TIMESTAMP, `Rating (Out of 5)` DECIMAL(2, 1), \"say \"\"hi\"\"\" INT, größe INT",
        &[
            ("Selling Price (INR)", "VARCHAR"),
            ("createdAt", "TIMESTAMP"),
            ("Rating (Out of 5)", "DECIMAL(2, 1)"),
            ("say \"hi\"", "INT"),
            ("größe", "INT"),
        ],
    );
    // Words that SQL reserves are names here.
    check(
        "type INT, date DATE, timestamp TIMESTAMP, json JSON, \"not\" INT",
        &[("type", "INT"), ("date", "DATE"), ("timestamp", "TIMESTAMP"), ("json", "VARCHAR"), ("not", "INT")],
    );
}

#[test]
fn mistakes_are_told_with_their_place() {
    check_error("", 1, 1, "no columns");
    check_error("  \n ", 1, 1, "no columns");
    check_error("id VARCHAR,\n  n INTEGER", 2, 5, "unknown type `INTEGER`: use INT");
    check_error("id VARCHAR,\n  n BIGNIT", 2, 5, "unknown type `BIGNIT`: did you mean BIGINT?");
    check_error("n geography", 1, 3, "unknown type `geography`: the types are BOOLEAN, INT");
    check_error("n \"INT\"", 1, 3, "unknown type");
    check_error("a INT,\na BIGINT", 2, 1, "column `a` is declared twice");
    check_error("a INT, A BIGINT", 1, 8, "columns `a` and `A` differ in case only");
    check_error("s STRUCT<x INT, x INT>", 1, 17, "column `x` is declared twice");
    check_error("a INT, _offset BIGINT", 1, 8, "column `_offset` begins with `_`");
    check_error("a DECIMAL(39, 2)", 1, 11, "expected DECIMAL's precision, 1 to 38, found `39`");
    check_error("a DECIMAL(0)", 1, 11, "1 to 38");
    check_error("a DECIMAL(5, 6)", 1, 14, "expected DECIMAL's scale (at most its precision), 0 to 5");
    check_error("a DECIMAL(5, -1)", 1, 14, "0 to 5");
    check_error("a DECIMAL(5", 1, 12, "expected `)`, found the end");
    check_error("a VARCHAR(20)", 1, 10, "VARCHAR takes no length");
    check_error("a TIMESTAMP(3)", 1, 12, "TIMESTAMP takes no length");
    check_error("a INT NOT", 1, 10, "expected NULL behind NOT");
    check_error("a INT PRIMARY KEY", 1, 7, "expected `,` or the end, found `PRIMARY`");
    check_error("a", 1, 2, "expected the type of `a`");
    check_error("a, b INT", 1, 2, "expected the type of `a`");
    check_error("a LIST", 1, 7, "expected `<`, as in LIST<TYPE>");
    check_error("a LIST<INT", 1, 11, "expected `,` or `>`, found the end");
    check_error("a LIST<INT>>", 1, 11, "expected `,` or the end");
    check_error("a STRUCT< >", 1, 3, "a STRUCT needs at least one field");
    check_error("a STRUCT<>", 1, 9, "expected `<`, as in STRUCT<name TYPE, …>");
    check_error("a MAP<INT>", 1, 10, "expected `,` and the type of the MAP's values");
    check_error("a MAP<DOUBLE, INT>", 1, 7, "a MAP's key may not be DOUBLE");
    check_error("a MAP<JSON, INT>", 1, 7, "a MAP's key may not be JSON");
    check_error("'a' INT", 1, 1, "names stand in double quotes: write \"a\"");
    check_error("\"\" INT", 1, 1, "may not be empty");
    check_error("5 INT", 1, 1, "expected a column's name, found `5`");
    check_error("a INT, \"b INT", 1, 8, "cannot read the columns");
    check_error(&format!("a {}", "LIST<".repeat(10_000)), 1, 163, "types nest deeper than 32");
}
