//! Compares what was served with the truth.

use serde_json::Value;

use super::truth::ViewCase;

/// Compares rows without regard to their order: keys exactly, floats within 1e-9, sketches within their error.
pub(crate) fn assert_rows(view: &ViewCase, served: &Value, truth: &[Value], context: &str) {
    let sort = |mut rows: Vec<Value>| {
        rows.sort_by_cached_key(|row| {
            let key: Vec<String> = view.key.iter().map(|k| row[*k].to_string()).collect();
            key
        });
        rows
    };
    let served = sort(served.as_array().expect("rows").clone());
    let truth = sort(truth.to_vec());
    assert_eq!(served.len(), truth.len(), "{}: rows\nserved {served:?}\ntruth {truth:?}\n{context}", view.name);
    for (mine, real) in served.iter().zip(&truth) {
        for (column, value) in real.as_object().expect("a row") {
            let got = &mine[column];
            let equal = match (value.as_f64(), got.as_f64()) {
                (Some(a), Some(b)) if column == "ad" => (a - b).abs() <= 2.0 + a * 0.05,
                (Some(a), Some(b)) if value.is_f64() || got.is_f64() => {
                    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
                }
                _ => value == got,
            };
            assert!(
                equal,
                "{}: column {column}: served {got}, truth {value}\nin {mine}\nnot {real}\n{context}",
                view.name
            );
        }
        assert_eq!(mine.as_object().map(|o| o.len()), real.as_object().map(|o| o.len()), "{}: columns", view.name);
    }
}
