//! Every durable name under the storage URL, as the contract lays them out. Nobody else puts such a name together.

use object_store::path::Path;

use crate::names::{BuildId, DefinitionHash, RunId};

/// The master dataset of a stream: a Delta table.
pub fn stream(stream: &str) -> Path {
    Path::from_iter(["streams", stream])
}

/// The dead letters of a stream: a Delta table.
pub fn dead_letters(stream: &str) -> Path {
    Path::from_iter(["dead_letters", stream])
}

/// The folder of all of a view's runs.
pub fn view(view: &str) -> Path {
    Path::from_iter(["views", view])
}

/// The folder of the runs of one definition of a view.
pub fn definition(view: &str, definition: &DefinitionHash) -> Path {
    Path::from_iter(["views", view, definition.as_str()])
}

/// A run of states, Parquet.
pub fn run(view: &str, definition: &DefinitionHash, run: &RunId) -> Path {
    Path::from_iter(["views", view, definition.as_str(), &format!("{run}.parquet")])
}

/// The view to which the file at `path` belongs; `None` if it is no view's.
pub fn view_of(path: &Path) -> Option<String> {
    let mut parts = path.parts();
    (parts.next()?.as_ref() == "views").then(|| parts.next().map(|view| view.as_ref().to_owned())).flatten()
}

/// The events of a run on which the view's SQL failed, Parquet of `_partition, _offset, error`.
pub fn run_errors(view: &str, definition: &DefinitionHash, run: &RunId) -> Path {
    Path::from_iter(["views", view, definition.as_str(), &format!("{run}.errors.parquet")])
}

/// The folder of a register's records.
pub fn register(kind: &str, name: &str) -> Path {
    Path::from_iter(["registers", kind, name])
}

/// A record of a register. The number has twenty digits, so that the order of names is the order of numbers.
pub fn record(kind: &str, name: &str, number: u64) -> Path {
    Path::from_iter(["registers", kind, name, &format!("{number:020}.json")])
}

/// The number of the record at `path`; `None` if no record lies there.
pub fn record_number(path: &Path) -> Option<u64> {
    let digits = path.filename()?.strip_suffix(".json")?;
    if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// The copy of a dimension table or model under the hash of its content.
pub fn table(name: &str, content_hash: &str) -> Path {
    Path::from_iter(["tables", name, content_hash])
}

/// The folder of all builds.
pub fn builds() -> Path {
    Path::from_iter(["builds"])
}

/// The folder of one build: its progress and history, which decide nothing.
pub fn build(build: &BuildId) -> Path {
    Path::from_iter(["builds", build.as_str()])
}

/// A file of a build.
pub fn build_file(build: &BuildId, file: &str) -> Path {
    Path::from_iter(["builds", build.as_str(), file])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_names_sort_as_their_numbers() {
        let numbers = [0, 1, 9, 10, 99, 1_000_000, u64::MAX];
        let names: Vec<_> = numbers.iter().map(|n| record("views", "v", *n)).collect();
        assert!(names.is_sorted());
        assert_eq!(names[1].as_ref(), "registers/views/v/00000000000000000001.json");
        for (number, name) in numbers.iter().zip(&names) {
            assert_eq!(record_number(name), Some(*number));
        }
    }

    #[test]
    fn what_is_no_record_has_no_number() {
        for name in
            ["1.json", ".00000000000000000001.json.tmp", "0000000000000000000x.json", "+0000000000000000001.json"]
        {
            assert_eq!(record_number(&Path::from_iter(["registers", "views", "v", name])), None, "{name}");
        }
    }

    #[test]
    fn a_name_cannot_leave_its_folder() {
        assert_eq!(view("../x").as_ref().split('/').count(), 2);
    }
}
