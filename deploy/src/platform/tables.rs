//! The dimension tables of this process: who builds reads their files, the others take the copies that it recorded.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use anyhow::{Context, Result};
use tracing::warn;
use watershed_shared::catalog::{Definition, ViewState};
use watershed_shared::config::{Config, TableConfig, ViewConfig};
use watershed_shared::definitions::Definitions;
use watershed_shared::storage::Storage;
use watershed_shared::tables;
use watershed_shared::view::{CompiledView, DimensionTable};

use super::View;
use crate::commands::up::Role;

/// Where the content of tables comes from.
///
/// | role | a definition that the register knows | any other | statements |
/// |---|---|---|---|
/// | all, batch | the files: other content is another definition | the files | the files |
/// | speed, serving | the recorded copies | the files that it names | what the view that reads it has recorded, else the file |
#[derive(Debug)]
pub(super) struct Tables<'a> {
    config: &'a Config,
    storage: &'a Storage,
    /// Whether this process says what the tables hold.
    defines: bool,
    /// From the files.
    read: BTreeMap<String, DimensionTable>,
    /// The copies, by name and content hash.
    loaded: BTreeMap<(String, String), DimensionTable>,
}

impl<'a> Tables<'a> {
    /// Reads all files and copies them to the storage, if the process is to say what the tables hold.
    pub(super) async fn open(config: &'a Config, storage: &'a Storage, role: Role) -> Result<Self> {
        let defines = matches!(role, Role::All | Role::Batch);
        let mut tables = Self { config, storage, defines, read: BTreeMap::new(), loaded: BTreeMap::new() };
        for table in config.tables.values().filter(|_| defines) {
            tables.file(table).await?;
        }
        Ok(tables)
    }

    /// The configured definition of `view` with the tables as they were recorded, if its register, which says `state`,
    /// has that: the one in force, else the newest.
    pub(super) async fn recorded(
        &mut self,
        view: &ViewConfig,
        state: &ViewState,
        definitions: &Definitions,
    ) -> Result<Option<(Definition, Arc<CompiledView>)>> {
        if self.defines {
            return Ok(None);
        }
        let mut known: Vec<&Definition> = state.definitions.values().collect();
        known.sort_by_key(|known| Reverse((state.configured.as_ref() == Some(&known.hash), known.appended_at)));
        for known in known {
            let tables = match self.copies(&known.tables).await {
                // Another one may be whole, and the files may have what is lost.
                Err(error @ tables::Error::Copy { .. }) => {
                    warn!(view = %view.name, definition = %known.hash, %error, "a recorded definition lacks a table");
                    continue;
                }
                copies => copies?,
            };
            // What does not compile with these tables is another view.
            match definitions.configured(view, &tables) {
                Ok(found) if found.0.hash == known.hash => return Ok(Some(found)),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(None)
    }

    /// The tables with which `view` is to be compiled, as their files have them.
    pub(super) async fn of_view(&mut self, view: &ViewConfig) -> Result<BTreeMap<String, DimensionTable>> {
        if self.defines {
            return Ok(self.read.clone());
        }
        let mut found = BTreeMap::new();
        for table in self.config.tables.values().filter(|table| tables::is_named_in(&view.sql, &table.name)) {
            found.insert(table.name.clone(), self.file(table).await?);
        }
        Ok(found)
    }

    /// All tables, for statements that name them.
    pub(super) async fn for_queries(
        mut self,
        views: &BTreeMap<String, View>,
    ) -> Result<BTreeMap<String, DimensionTable>> {
        if self.defines {
            return Ok(self.read);
        }
        let mut found = BTreeMap::new();
        for table in self.config.tables.values() {
            let readers = views.values().filter(|view| view.reads.contains(&table.name));
            let recorded = readers.filter_map(|view| {
                let state = view.state.borrow();
                let definition = state.definitions.get(state.configured.as_ref()?)?;
                Some((definition.appended_at, definition.tables.get(&table.name)?.clone()))
            });
            let content = match recorded.max() {
                Some((_, content_hash)) => self.copy(&table.name, &content_hash).await?,
                None => self.file(table).await?,
            };
            found.insert(table.name.clone(), content);
        }
        Ok(found)
    }

    /// What the table's file holds; its copy is in the storage then.
    async fn file(&mut self, table: &TableConfig) -> Result<DimensionTable> {
        if let Some(content) = self.read.get(&table.name) {
            return Ok(content.clone());
        }
        let content = tables::read(table).await;
        let content = match self.defines {
            true => content?,
            false => content.context(
                "no view's register has a copy of the table yet: start a batch process that has the file, it records one",
            )?,
        };
        tables::store(self.storage, &content).await?;
        self.read.insert(table.name.clone(), content.clone());
        Ok(content)
    }

    async fn copies(
        &mut self,
        tables: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, DimensionTable>, tables::Error> {
        let mut copies = BTreeMap::new();
        for (name, content_hash) in tables {
            copies.insert(name.clone(), self.copy(name, content_hash).await?);
        }
        Ok(copies)
    }

    async fn copy(&mut self, name: &str, content_hash: &str) -> Result<DimensionTable, tables::Error> {
        match self.loaded.entry((name.to_owned(), content_hash.to_owned())) {
            Entry::Occupied(copy) => Ok(copy.get().clone()),
            Entry::Vacant(place) => Ok(place.insert(tables::load(self.storage, name, content_hash).await?).clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use tempfile::TempDir;
    use tokio_util::sync::CancellationToken;
    use watershed_shared::register::Register;

    use super::*;
    use crate::platform::stages::Stage;
    use crate::platform::view::Configured;

    const CONFIG: &str = r#"
[stream.clicks]
columns = "page BIGINT"
[table.names]
url = "names.csv"
[table.colors]
url = "colors.csv"
[view.per_name]
sql = "SELECT name, count(*) AS n FROM clicks JOIN names ON page = id GROUP BY name"
"#;

    /// A machine with files of its own, and the storage that all share.
    struct Host {
        dir: TempDir,
        config: Config,
        storage: Storage,
    }

    impl Host {
        fn new(storage: &Storage) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let config = Config::parse(CONFIG, dir.path(), &|_: &str| None).unwrap();
            Self { dir, config, storage: storage.clone() }
        }

        fn with(self, file: &str, text: &str) -> Self {
            std::fs::write(self.dir.path().join(file), text).unwrap();
            self
        }

        /// Starts what of a process has to do with tables: what its statements find in `names`.
        async fn start(&self, role: Role) -> Result<String> {
            let mut stage = Stage { stop: CancellationToken::new(), tasks: Vec::new() };
            let definitions = Definitions::new(self.storage.clone(), self.config.streams.clone());
            let mut tables = Tables::open(&self.config, &self.storage, role).await?;
            let mut views = BTreeMap::new();
            for view in self.config.views.values() {
                let configured = Configured::compile(&self.storage, &definitions, view, &mut tables).await?;
                views.insert(view.name.clone(), configured.follow(&mut stage).await?);
            }
            stage.stop.cancel();
            if role == Role::Speed {
                return Ok(String::new());
            }
            let names = tables.for_queries(&views).await?.remove("names").unwrap();
            Ok(names.batches[0].column_by_name("name").unwrap().as_string::<i32>().value(0).to_owned())
        }
    }

    async fn recorded(storage: &Storage) -> ViewState {
        Register::<ViewState>::open(storage, "views", "per_name").state().await.unwrap()
    }

    #[tokio::test]
    async fn who_does_not_build_takes_the_tables_that_were_recorded() {
        let storage = Storage::memory();
        let colors = "id,color\n1,red\n";
        let bare = || Host::new(&storage).with("colors.csv", colors);
        let error = format!("{:#}", bare().start(Role::Speed).await.unwrap_err());
        assert!(error.contains("start a batch process that has the file") && error.contains("names.csv"), "{error}");

        let batch = bare().with("names.csv", "id,name\n1,one\n");
        assert_eq!(batch.start(Role::Batch).await.unwrap(), "one");
        let first = recorded(&storage).await;
        bare().start(Role::Speed).await.unwrap();
        assert_eq!(bare().start(Role::Serving).await.unwrap(), "one");
        let other = bare().with("names.csv", "id,name\n1,another\n");
        other.start(Role::Speed).await.unwrap();
        assert_eq!(other.start(Role::Serving).await.unwrap(), "one", "the copy, whatever its own file holds");
        let mut written = bare();
        written.config.views.get_mut("per_name").unwrap().sql.push_str(" -- the same view");
        assert_eq!(written.start(Role::Serving).await.unwrap(), "one");
        assert_eq!(recorded(&storage).await, first, "nobody has defined anything else");
        assert_eq!(first.definitions[&first.configured.clone().unwrap()].tables.keys().collect::<Vec<_>>(), ["names"]);

        let batch = batch.with("names.csv", "id,name\n1,uno\n");
        assert_eq!(batch.start(Role::Batch).await.unwrap(), "uno");
        let second = recorded(&storage).await;
        assert!(second.definitions.len() == 2 && second.configured != first.configured, "new content");
        assert_eq!(bare().start(Role::Serving).await.unwrap(), "uno");
        assert_eq!(recorded(&storage).await, second);

        // A table that no view reads is in no register: who answers statements on it has its file.
        let error = format!("{:#}", Host::new(&storage).start(Role::Serving).await.unwrap_err());
        assert!(error.contains("colors.csv"), "{error}");
        Host::new(&storage).start(Role::Speed).await.unwrap();
    }

    #[tokio::test]
    async fn a_new_view_takes_the_files_where_they_are() {
        let storage = Storage::memory();
        let host = Host::new(&storage).with("colors.csv", "id,color\n1,red\n").with("names.csv", "id,name\n1,one\n");
        assert_eq!(host.start(Role::Serving).await.unwrap(), "one");
        let state = recorded(&storage).await;
        host.start(Role::Batch).await.unwrap();
        assert_eq!(recorded(&storage).await, state, "the same content is the same definition");
        let copy = paths_of(&storage).await;
        assert!(copy.iter().any(|path| path.starts_with("tables/names/")), "{copy:?}");
    }

    async fn paths_of(storage: &Storage) -> Vec<String> {
        let listed = storage.list(&"tables".into()).await.unwrap();
        listed.into_iter().map(|object| object.location.to_string()).collect()
    }
}
