use std::path::Path;
use std::time::Duration;

use arrow::datatypes::DataType;

use super::*;

/// The configuration section of contract.md, word for word.
const CONTRACT: &str = include_str!("contract_example.toml");

fn environment(name: &str) -> Option<String> {
    match name {
        "PORT" => Some("9999".to_owned()),
        "QUOTED" => Some("a\"b\\ ${PORT}".to_owned()),
        "YES" => Some("true".to_owned()),
        "SHARDS" => Some("2, 0".to_owned()),
        "AUTO" => Some("auto".to_owned()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Config, Vec<ConfigError>> {
    Config::parse(text, Path::new("/etc/watershed"), &environment)
}

#[track_caller]
fn good(text: &str) -> Config {
    parse(text).unwrap_or_else(|errors| {
        let errors: Vec<String> = errors.iter().map(ConfigError::to_string).collect();
        panic!("{}\n{text}", errors.join("\n"))
    })
}

/// Each of `expected` is `line:column: message`.
#[track_caller]
fn wrong(text: &str, expected: &[&str]) {
    let errors = parse(text).expect_err(text);
    let found: Vec<String> = errors.iter().map(|e| format!("{}:{}: {}", e.line, e.column, e.message)).collect();
    assert_eq!(found, expected, "\n{text}");
    assert!(errors.iter().all(|error| error.file == "watershed.toml"));
}

/// A stream in front of what is tested, on line 1 and 2.
fn with_stream(text: &str) -> String {
    format!("[stream.s]\ncolumns = \"id VARCHAR, at TIMESTAMP, seen TIMESTAMP\"\n{text}")
}

#[test]
fn the_contracts_example_parses() {
    let config = good(CONTRACT);
    assert_eq!(config.data_dir, Path::new("/etc/watershed/data"));
    assert_eq!(config.kafka.expect("a section").properties["bootstrap.servers"], "localhost:9092");
    assert_eq!(config.broker.listen, "127.0.0.1:9092".parse().unwrap());
    assert_eq!(config.storage_url.as_str(), "hdfs://localhost:9000/watershed/");
    assert_eq!(config.http.listen, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(config.archive.commit_interval, Duration::from_secs(10));
    assert_eq!(config.archive.target_file_size_bytes, 128 << 20);
    assert_eq!(config.archive.vacuum_retention, Duration::from_secs(7 * 86_400));
    assert_eq!(config.batch.memory_limit_bytes, 4 << 30);
    assert_eq!((config.batch.threads, config.batch.max_builds), (1, 1));
    assert_eq!(config.batch.archive_wait, Duration::from_secs(600));
    assert_eq!(config.speed.claim, Claim::Auto);
    let stream = &config.streams["github"];
    assert_eq!((stream.name.as_str(), stream.topic.as_str()), ("github", "github"));
    assert_eq!((stream.partitions, stream.replication, stream.shards), (4, 1, 1));
    assert_eq!(stream.format, Format::Json);
    assert_eq!(stream.event_time.as_deref(), Some("created_at"));
    assert_eq!(stream.allowed_lateness, Some(Duration::from_secs(600)));
    assert_eq!(stream.max_ahead, Duration::from_secs(86_400));
    assert!(!stream.accept_compacted);
    let names: Vec<&str> = stream.columns.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(names, ["id", "type", "actor", "created_at"]);
    assert_eq!(config.tables["languages"].url.as_str(), "file:///srv/languages.csv");
    let view = &config.views["events_per_hour"];
    assert!(view.sql.trim().starts_with("SELECT date_bin"));
    assert_eq!(view.rebuild.as_deref(), Some("0 3 * * *"));
    assert_eq!(view.refresh.as_deref(), Some("*/5 * * * *"));
    assert_eq!(view.timezone, chrono_tz::Europe::Madrid);
    assert_eq!((view.late, view.retain, view.materialize), (Late::Include, None, false));
}

#[test]
fn an_empty_file_is_the_embedded_default() {
    let config = good("");
    assert!(config.kafka.is_none());
    assert_eq!(config.storage_url.as_str(), "file:///etc/watershed/data/storage/");
    let embedded = Config::embedded_default();
    assert!(embedded.data_dir.is_absolute() && embedded.data_dir.ends_with("data"));
    assert_eq!(embedded.http.listen, config.http.listen);
}

#[test]
fn the_reference_is_a_configuration_with_the_defaults() {
    let reference = Config::reference();
    for section in keys::SECTIONS {
        for key in section.keys {
            assert!(reference.contains(&format!("{} = ", key.name)), "{}.{} is missing", section.name, key.name);
        }
    }
    let config = good(&reference);
    let default = good("");
    let comparable = |config: &Config| {
        format!("{:?}", (&config.data_dir, &config.storage_url, &config.archive, &config.batch, &config.speed))
    };
    assert_eq!(comparable(&config), comparable(&default));
    // With the optional keys and sections too: a comment that is a key or a section begins without a space.
    let full: String = reference
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| !c.is_whitespace()) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    // One name for stream, table and view stands for three; a delimiter is for another format than a registry.
    let full = full
        .replace("[table.example]", "[table.t]")
        .replace("[view.example]", "[view.v]")
        .replace("format = \"json\"", "format = \"avro\"")
        .replace("delimiter = \",\"", "");
    let config = good(&full);
    assert_eq!((config.streams.len(), config.tables.len(), config.views.len()), (1, 1, 1));
    assert!(config.kafka.is_some());
}

#[test]
fn paths_are_relative_to_the_file() {
    let config = good("data_dir = \"../d\"\n[storage]\nurl = \"lake\"\n[table.t]\nurl = \"t/x.csv\"");
    assert_eq!(config.data_dir, Path::new("/etc/d"));
    assert_eq!(config.storage_url.as_str(), "file:///etc/watershed/lake/");
    assert_eq!(config.tables["t"].url.as_str(), "file:///etc/watershed/t/x.csv");
    assert_eq!(good("data_dir = \"/var/w\"").storage_url.as_str(), "file:///var/w/storage/");
}

#[test]
fn the_environment_is_filled_in() {
    let config = good("[http]\nlisten = \"127.0.0.1:${PORT}\"");
    assert_eq!(config.http.listen.port(), 9999);
    let config =
        good(&with_stream("partitions = \"${PORT}\"\n[view.v]\nsql = 'SELECT ${YES}'\nmaterialize = \"${YES}\""));
    assert_eq!(config.streams["s"].partitions, 9999);
    assert!(config.views["v"].materialize);
    assert_eq!(config.views["v"].sql, "SELECT true");
    assert_eq!(good("[speed]\nclaim = \"${SHARDS}\"").speed.claim, Claim::Shards([0, 2].into()));
    assert_eq!(good("[speed]\nclaim = \"${AUTO}\"").speed.claim, Claim::Auto);
    // What comes from the environment is text, whatever stands in it.
    let config = good("[kafka]\nbootstrap_servers = \"b:1\"\n\"sasl.password\" = \"<${QUOTED}>\"");
    assert_eq!(config.kafka.unwrap().properties["sasl.password"], "<a\"b\\ ${PORT}>");
    // A comment refers to nothing.
    good("# ${NOTHING}");
    assert_eq!(good("[view.v]\nsql = \"SELECT '$${X}', '$x', '$'\"").views["v"].sql, "SELECT '${X}', '$x', '$'");
}

#[test]
fn wrong_references_to_the_environment() {
    wrong(
        "data_dir = \"/srv/${DIRECTORY}\"",
        &["1:18: environment variable `DIRECTORY` is not set; set it, or write `$${DIRECTORY}` for the text itself"],
    );
    wrong(
        "\n[kafka]\nbootstrap_servers = \"b:1\"\nsasl.password = \"x${not a name}\"",
        &["4:19: `${` begins a reference to an environment variable, as in `${NAME}`; write `$${` for the text `${`"],
    );
    wrong(
        &with_stream("partitions = \"4\""),
        &["3:14: `partitions` must be a whole number without quotes, not a string"],
    );
}

#[test]
fn kafkas_keys_are_handed_on() {
    let config = good(
        "[kafka]\nbootstrap_servers = \"a:1,b:2\"\nsecurity.protocol = \"SASL_PLAINTEXT\"\n\"sasl.mechanism\" = \"PLAIN\"\nsasl.username = \"u\"\nsasl.password = \"p\"\nsocket.timeout.ms = 500\nsocket.keepalive.enable = true",
    );
    let properties = config.kafka.expect("a section").properties;
    let expected = [
        ("bootstrap.servers", "a:1,b:2"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.password", "p"),
        ("sasl.username", "u"),
        ("security.protocol", "SASL_PLAINTEXT"),
        ("socket.keepalive.enable", "true"),
        ("socket.timeout.ms", "500"),
    ];
    assert_eq!(properties, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
}

#[test]
fn wrong_kafka_sections() {
    wrong("[kafka]\n", &["1:2: [kafka] lacks `bootstrap_servers`, as in `bootstrap_servers = \"localhost:9092\"`"]);
    wrong(
        "[kafka]\nbootstrap_servers = \"b:1\"\nsecurity.protocoll = \"SSL\"",
        &["3:10: librdkafka refuses `security.protocoll`: No such configuration property: \"security.protocoll\""],
    );
    wrong(
        "[kafka]\nbootstrap_servers = \"b:1\"\n\"bootstrap.servers\" = \"b:2\"",
        &["2:1: `bootstrap.servers` is given twice: as bootstrap_servers and under librdkafka's name"],
    );
    wrong("kafka = \"b:1\"", &["1:1: `kafka` must be a section: write [kafka]"]);
}

#[test]
fn a_login_that_cannot_succeed_is_wrong() {
    let sasl =
        |more: &str| format!("[kafka]\nbootstrap_servers = \"b:1\"\nsecurity.protocol = \"sasl_plaintext\"\n{more}");
    wrong(
        &sasl(""),
        &[
            "3:10: `security.protocol` asks for a login and `sasl.mechanism` does not say which: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
        ],
    );
    wrong(
        &sasl("sasl.mechanisms = \"GSSAPI\""),
        &[
            "4:6: `sasl.mechanism`: GSSAPI (Kerberos) is not in this program; it has PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512",
        ],
    );
    wrong(
        &sasl("sasl.mechanism = \"PLAIN\"\nsasl.password = \"\""),
        &[
            "4:6: `sasl.mechanism` needs `sasl.password` in [kafka], and that is not set",
            "4:6: `sasl.mechanism` needs `sasl.username` in [kafka], and that is not set",
        ],
    );
}

#[cfg(feature = "tls")]
#[test]
fn tls_and_scram_are_in_this_build() {
    let config = good(
        "[kafka]\nbootstrap_servers = \"b:1\"\nsecurity.protocol = \"SASL_SSL\"\nssl.ca.location = \"/ca.pem\"\nsasl.mechanism = \"SCRAM-SHA-512\"\nsasl.username = \"u\"\nsasl.password = \"hunter2\"",
    );
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
}

#[cfg(not(feature = "tls"))]
#[test]
fn a_build_without_tls_says_so() {
    let errors = parse(
        "[kafka]\nbootstrap_servers = \"b:1\"\nsecurity.protocol = \"SASL_SSL\"\nssl.ca.location = \"/ca.pem\"\nsasl.mechanism = \"SCRAM-SHA-512\"\nsasl.username = \"u\"\nsasl.password = \"hunter2\"",
    )
    .expect_err("no TLS");
    let lines: Vec<u32> = errors.iter().map(|error| u32::try_from(error.line).unwrap()).collect();
    assert_eq!(lines, [3, 4, 5], "{errors:?}");
    for error in errors {
        assert!(error.message.contains("build it with `--features tls`"), "{error}");
        assert!(!error.message.contains("hunter2"), "{error}");
    }
}

#[test]
fn unknown_keys_name_the_nearest() {
    wrong(
        "data_dri = \"x\"\n[archive]\ncommit_intervall = \"1 s\"\nmemory_limit = \"1 GiB\"\n[htpp]\n",
        &[
            "1:1: unknown key `data_dri` in the top of the file; did you mean `data_dir`?",
            "3:1: unknown key `commit_intervall` in [archive]; did you mean `commit_interval`?",
            "4:1: unknown key `memory_limit` in [archive]; did you mean `memory_limit` of [batch]?",
            "5:2: unknown section [htpp]; did you mean [http]?",
        ],
    );
    wrong(
        &with_stream("partition = 3\n[view.v]\nsql = \"SELECT 1\"\nrebuilt = \"@daily\""),
        &[
            "3:1: unknown key `partition` in [stream.s]; did you mean `partitions`?",
            "6:1: unknown key `rebuilt` in [view.v]; did you mean `rebuild`?",
        ],
    );
    wrong("[streams.s]\n", &["1:2: unknown section [streams]; did you mean [stream]?"]);
    wrong("[stream]\ncolumns = \"id INT\"", &["2:1: `columns` stands in [stream]; a stream has a name: [stream.NAME]"]);
}

#[test]
fn syntax_errors_have_their_place() {
    let errors = parse("[http]\nlisten = 127.0.0.1:8080\n").expect_err("no TOML");
    assert_eq!((errors[0].line, errors[0].column > 9), (2, true), "{errors:?}");
    let errors = parse("[http]\n[http]\n").expect_err("twice");
    assert_eq!(errors[0].line, 2, "{errors:?}");
}

#[test]
fn wrong_values() {
    wrong(
        "[http]\nlisten = \"localhost\"",
        &["2:10: `listen`: `localhost` is not an address such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080"],
    );
    wrong("[http]\nlisten = 8080", &["2:10: `listen` must be a text in quotes, not an integer"]);
    wrong(
        "[http]\nlisten = \"127.0.0.1:9092\"",
        &["2:10: `listen`: the embedded broker listens on 127.0.0.1:9092 already"],
    );
    wrong(
        "[archive]\ncommit_interval = \"10\"\ntarget_file_size = \"big\"",
        &[
            "2:19: `commit_interval`: `10` has no unit; write a duration such as \"10 seconds\", \"5 minutes\", \"250 ms\" or \"90 days\"",
            "3:20: `target_file_size`: `big` is not a size such as \"128 MiB\" or \"4 GiB\"",
        ],
    );
    wrong("[archive]\ncommit_interval = \"0 s\"", &["2:19: `commit_interval`: `0 s` is less than 1ms"]);
    wrong(
        "[batch]\nthreads = 0\nmax_builds = 1.5\nmemory_limit = \"1 KiB\"",
        &[
            "2:11: `threads`: `0` is not a whole number from 1 to 1024",
            "3:14: `max_builds` must be a whole number, not a float",
            "4:16: `memory_limit`: `1 KiB` is less than 16777216 bytes",
        ],
    );
    wrong(
        "[speed]\nclaim = [0, -1, 0]",
        &["2:13: `claim`: a shard is a number from 0, as in claim = [0, 1]", "2:17: `claim`: shard 0 stands twice"],
    );
    wrong("[speed]\nclaim = \"all\"", &["2:9: `claim`: `all` is neither \"auto\" nor a list of shards, as in [0, 1]"]);
    for (written, read) in [("0", "0"), ("${YES}", "true"), ("${SHARDS},", "2, 0,")] {
        let neither = format!("2:9: `claim`: `{read}` is neither \"auto\" nor a list of shards, as in [0, 1]");
        wrong(&format!("[speed]\nclaim = \"{written}\""), &[&neither]);
    }
    wrong("[speed]\nadvertise = \"speed-0\"", &["2:13: `advertise`: `speed-0` is not of the form HOST:PORT"]);
    wrong("[speed]\ntoken = \"  \"", &["2:9: `token`: an empty token"]);
    let speed =
        good("[speed]\nadvertise = \"speed-0.speed:8081\"\ntoken = \"secret\"\nowner_timeout = \"2 seconds\"").speed;
    assert_eq!((speed.advertise.as_deref(), speed.token.as_deref()), (Some("speed-0.speed:8081"), Some("secret")));
    assert_eq!(speed.owner_timeout, Duration::from_secs(2));
    assert_eq!(good("[speed]\nclaim = [0, 2]").speed.claim, Claim::Shards([0, 2].into()));
}

#[test]
fn wrong_storages() {
    wrong("[storage]\n", &["1:2: [storage] lacks `url`, as in `url = \"file:///srv/watershed\"`"]);
    for (url, message) in [
        ("ftp://x/y", "`ftp://` is none of the storages file://, hdfs://"),
        ("file://srv/x", "`file://srv/x` names a host; a path has three slashes: file:///srv/x"),
        ("hdfs:///x", "`hdfs:///x` lacks the NameNode, as in hdfs://localhost:9000/watershed"),
        ("s3://bucket/x", "`s3://` is not there yet: use file:// or hdfs://"),
        ("", "an empty URL"),
    ] {
        wrong(&format!("[storage]\nurl = \"{url}\""), &[&format!("2:7: `url`: {message}")]);
    }
}

#[test]
fn wrong_names() {
    let rule = "a name has lower-case letters a-z, digits and _, begins with a letter and has at most 100 characters";
    wrong(
        "[stream.Page-Views]\ncolumns = \"id INT\"\n[view.\"\"]\nsql = \"SELECT 1\"",
        &[
            &format!(
                "1:9: `Page-Views` cannot name a stream: {rule}; for example [stream.page_views] with topic = \"Page-Views\""
            ),
            &format!("3:7: `` cannot name a view: {rule}"),
        ],
    );
    wrong("[view._v]\nsql = \"SELECT 1\"", &[&format!("1:7: `_v` cannot name a view: {rule}")]);
    wrong(
        "[view.dead_letters]\nsql = \"SELECT 1\"",
        &["1:7: `dead_letters` is a name of Watershed's own; choose another for the view"],
    );
    wrong(
        &with_stream("[view.s]\nsql = \"SELECT 1\"\n[table.s]\nurl = \"s.csv\""),
        &[
            "3:7: `s` names a stream already; choose another name for the view",
            "5:8: `s` names a stream already; choose another name for the table",
        ],
    );
}

#[test]
fn wrong_streams() {
    wrong(
        "[stream.s]\n",
        &["1:9: [stream.s] lacks `columns`, as in `columns = \"id VARCHAR NOT NULL, at TIMESTAMP\"`"],
    );
    wrong(
        &with_stream("shards = 2\npartitions = 1\ntopic = \"a b\""),
        &[
            "3:10: `shards`: 2 shards, but 1 partition; a shard needs one of its own",
            "5:9: `topic`: `a b` is not the name of a topic: it has letters, digits, `.`, `_` and `-`, at most 249 characters",
        ],
    );
    // An existing topic keeps its own partitions.
    assert_eq!(good(&with_stream("shards = 2")).streams["s"].shards, 2);
    wrong(
        &with_stream("format = \"jsn\""),
        &["3:10: `format`: `jsn` is none of json, csv, text, avro; did you mean `json`?"],
    );
    wrong(&with_stream("event_time = \"att\""), &["3:14: `event_time`: there is no column `att`; did you mean `at`?"]);
    wrong(
        &with_stream("event_time = \"id\""),
        &["3:14: `event_time`: column `id` is VARCHAR, not TIMESTAMP; did you mean `at`?"],
    );
    wrong(
        "[stream.s]\ncolumns = \"id INT\"\nevent_time = \"at\"",
        &["3:14: `event_time`: there is no column `at`; no column of the stream is a TIMESTAMP"],
    );
    wrong(
        &with_stream("allowed_lateness = \"1 minute\""),
        &["3:20: `allowed_lateness` needs `event_time`, the column by which events are late"],
    );
    wrong(
        &with_stream("epoch_units = { id = \"seconds\", at = \"days\" }"),
        &[
            "3:17: `epoch_units`: column `id` is VARCHAR, not TIMESTAMP; did you mean `at`?",
            "3:38: `epoch_units`: `days` is none of seconds, milliseconds, microseconds, nanoseconds",
        ],
    );
    let config = good(&with_stream("epoch_units = { at = \"seconds\" }"));
    assert_eq!(config.streams["s"].epoch_units["at"], EpochUnit::Seconds);
}

#[test]
fn formats_of_streams() {
    wrong(
        "[stream.s]\nformat = \"text\"\ncolumns = \"line VARCHAR\"",
        &["3:11: `columns`: a text stream has the single column `line VARCHAR`; leave `columns` out"],
    );
    let text = good("[stream.s]\nformat = \"text\"");
    let line = text.streams["s"].columns.field(0);
    assert_eq!(
        (line.name().as_str(), line.data_type(), text.streams["s"].columns.fields().len()),
        ("line", &DataType::Utf8, 1)
    );
    assert_eq!(good(&with_stream("format = \"csv\"")).streams["s"].format, Format::Csv { delimiter: b',' });
    assert_eq!(
        good(&with_stream("format = \"csv\"\ndelimiter = \"\\t\"")).streams["s"].format,
        Format::Csv { delimiter: b'\t' }
    );
    wrong(
        &with_stream("format = \"csv\"\ndelimiter = \"||\""),
        &["4:13: `delimiter`: `||` is not one ASCII character other than a quote or a line break"],
    );
    wrong(
        &with_stream("delimiter = \";\""),
        &["3:13: `delimiter` is only for format = \"csv\"; this stream has format = \"json\""],
    );
}

#[test]
fn schema_registries_of_streams() {
    wrong(
        &with_stream("format = \"avro\""),
        &[
            "3:10: `format`: an avro stream needs the registry that has the schemas of its records, as in `schema_registry = \"http://localhost:8081\"`",
        ],
    );
    wrong(
        &with_stream("schema_registry = \"http://r\""),
        &["3:19: `schema_registry` is only for format = \"avro\"; this stream has format = \"json\""],
    );
    let avro = |keys: &str| with_stream(&format!("format = \"avro\"\n{keys}"));
    for (url, message) in [
        ("localhost:8081", "`localhost://` is none of http://, https://"),
        ("r", "`r` is not a URL: relative URL without a base"),
        ("http://u:p@r", "user and password stand in `schema_registry_user` and `schema_registry_password`"),
        ("http://r?x=1", "the registry's URL has no `?` and no `#`"),
    ] {
        wrong(&avro(&format!("schema_registry = \"{url}\"")), &[&format!("4:19: `schema_registry`: {message}")]);
    }
    wrong(
        &avro("schema_registry = \"http://r\"\nschema_registry_password = \"p\""),
        &["5:28: `schema_registry_password` needs `schema_registry_user`"],
    );
    let keys =
        "schema_registry = \"https://r/apis/v7\"\nschema_registry_user = \"u\"\nschema_registry_password = \"pass\"";
    let config = good(&avro(keys));
    let Format::Avro(registry) = &config.streams["s"].format else { panic!("{config:?}") };
    assert_eq!(registry.url.as_str(), "https://r/apis/v7/");
    assert_eq!((registry.user.as_deref(), registry.password.as_deref()), (Some("u"), Some("pass")));
    assert!(!format!("{config:?}").contains("\"pass\""), "passwords are not shown");
}

#[test]
fn errors_within_columns_stand_where_they_are() {
    let errors = parse("[stream.s]\ncolumns = \"\"\"\n  id VARCHAR,\n  at TIMESTMP\n\"\"\"").expect_err("a wrong type");
    assert_eq!((errors.len(), errors[0].line, errors[0].column), (1, 4, 6), "{errors:?}");
    assert!(errors[0].message.starts_with("`columns`: "), "{errors:?}");
    let errors = parse("[stream.s]\ncolumns = \"id VARCHAR, at TIMESTMP\"").expect_err("a wrong type");
    assert_eq!((errors[0].line, errors[0].column), (2, 27), "{errors:?}");
}

#[test]
fn wrong_tables_and_views() {
    wrong(
        "[table.t]\nurl = \"t.xls\"",
        &["2:7: `url`: the file's name must end with one of .csv, .json, .ndjson, .jsonl, .parquet (or that and .gz)"],
    );
    wrong("[table.t]\nurl = \"http://x/t.csv\"", &["2:7: `url`: `http://` is none of file://, hdfs://"]);
    wrong("[table.t]\nurl = \"s3://x/t.csv\"", &["2:7: `url`: `s3://` is not there yet: use file:// or hdfs://"]);
    wrong("[view.v]\n", &["1:7: [view.v] lacks `sql`, as in `sql = \"SELECT count(*) AS events FROM example\"`"]);
    wrong("[view.v]\nsql = \" \"", &["2:7: `sql` is empty"]);
    let view = |text: &str| format!("[view.v]\nsql = \"SELECT 1\"\n{text}");
    wrong(&view("rebuild = \"0 25 * * *\""), &["3:11: `rebuild`: the hour field: 25 is not within 0-23"]);
    wrong(&view("refresh = \"0 0 30 2 *\""), &["3:11: `refresh`: `0 0 30 2 *` never runs: no such day as 30 FEB"]);
    wrong(
        &view("timezone = \"Europe/Madird\""),
        &["3:12: `timezone`: `Europe/Madird` is not an IANA time zone; did you mean `Europe/Madrid`?"],
    );
    wrong(&view("late = \"exclud\""), &["3:8: `late`: `exclud` is none of include, exclude; did you mean `exclude`?"]);
    wrong(&view("materialize = \"yes\""), &["3:15: `materialize` must be true or false, not a string"]);
    wrong(
        &view("retain = \"forever\""),
        &[
            "3:10: `retain`: `forever` is not a duration such as \"10 seconds\", \"5 minutes\", \"250 ms\" or \"90 days\"",
        ],
    );
    assert_eq!(good(&view("retain = \"90 days\"")).views["v"].retain, Some(Duration::from_secs(90 * 86_400)));
}

/// The place of the `n`th `needle` in the file, counted by hand from the file's text.
fn place_of(text: &str, needle: &str) -> (usize, usize) {
    let at = text.find(needle).expect("the needle");
    let line = text[..at].matches('\n').count() + 1;
    (line, text[..at].rsplit('\n').next().unwrap_or_default().chars().count() + 1)
}

/// The place of `needle` within the view's SQL, mapped into the file, is where it stands in the file.
#[track_caller]
fn check_sql_place(file: &str, needle_in_sql: &str, needle_in_file: &str) {
    let config = good(file);
    let (line, column) = place_of(&config.views["v"].sql, needle_in_sql);
    let place = config.sql_places["v"].place(line, column);
    assert_eq!((place.line, place.column), place_of(file, needle_in_file), "{file}");
}

#[test]
fn places_in_sql_are_places_in_the_file() {
    check_sql_place("[view.v]\nsql = \"SELECT nope FROM s\"", "nope", "nope");
    check_sql_place("[view.v]\nsql = 'SELECT nope FROM s'", "nope", "nope");
    check_sql_place("[view.v]\nsql = \"\"\"\nSELECT a,\n   nope FROM s\"\"\"", "nope", "nope");
    check_sql_place("[view.v]\n  sql = '''SELECT a,\n   nope FROM s\n'''", "nope", "nope");
    check_sql_place("[view.v]\n  sql = '''SELECT a,\n   nope FROM s\n'''", "SELECT", "SELECT");
    check_sql_place("[view.v]\r\nsql = \"\"\"\r\nSELECT a,\r\n   nope FROM s\"\"\"", "nope", "nope");
    // Escapes, a line continued by a backslash, letters of more than one byte.
    check_sql_place("[view.v]\nsql = \"SELECT \\\"é\\\", '\\u00e9', nope FROM s\"", "nope", "nope");
    check_sql_place("[view.v]\nsql = \"\"\"SELECT 'ñ', \\\n   nope \\t\\n FROM s\"\"\"", "nope", "nope");
    check_sql_place("[view.v]\nsql = \"SELECT 1\\nFROM x\"", "FROM", "FROM");
    // The value of a variable stands where its name does.
    check_sql_place("[view.v]\nsql = \"SELECT '${QUOTED}', nope FROM s\"", "nope", "nope");
    check_sql_place("[view.v]\nsql = \"SELECT '${QUOTED}', nope FROM s\"", "b\\", "${QUOTED}");
    check_sql_place("[view.v]\nsql = \"SELECT '$${X}', nope FROM s\"", "nope", "nope");
}

#[test]
fn the_place_of_a_view_is_where_its_sql_begins() {
    let config = good("[view.v]\nsql = \"\"\"\nSELECT 1\"\"\"\n[view.w]\nsql = \"SELECT 1\"");
    assert_eq!(config.views["v"].place, Place { line: 3, column: 1 });
    assert_eq!(config.views["w"].place, Place { line: 5, column: 8 });
    // What lies past the end is the end.
    assert_eq!(config.sql_places["v"].place(9, 9), Place { line: 3, column: 9 });
    assert_eq!(config.sql_places["v"].place(1, 99), Place { line: 3, column: 9 });
}

#[test]
fn all_errors_come_at_once_in_the_order_of_the_file() {
    wrong(
        "[view.v]\nsql = 1\nrefresh = \"x\"\n[http]\nlisten = \"x\"\n",
        &[
            "2:7: `sql` must be a text in quotes, not an integer",
            "3:11: `refresh`: a cron expression has five fields (minute hour day month weekday), or six with seconds first; `x` has 1",
            "5:10: `listen`: `x` is not an address such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080",
        ],
    );
}

#[test]
fn files_are_loaded_with_their_name() {
    let dir = std::env::temp_dir().join(format!("watershed-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder");
    let file = dir.join("w.toml");
    std::fs::write(&file, "data_dir = \"d\"").expect("a file");
    assert_eq!(Config::load(Some(&file)).expect("a configuration").data_dir, dir.join("d"));
    std::fs::write(&file, b"data_dir = \"\xff\"").expect("a file");
    let errors = Config::load(Some(&file)).expect_err("no UTF-8");
    assert_eq!(errors[0].file, file.display().to_string());
    assert!(errors[0].message.starts_with("cannot read the configuration: invalid utf-8"), "{errors:?}");
    std::fs::remove_dir_all(&dir).expect("remove the folder");
    let errors = Config::load(Some(&file)).expect_err("no file");
    assert_eq!(
        serde_json::to_value(&errors[0]).expect("JSON"),
        serde_json::json!({
            "file": file.display().to_string(), "line": 1, "column": 1,
            "message": "cannot read the configuration: No such file or directory (os error 2)",
        })
    );
}
