//! A writer's schema: Avro's JSON as a table of types.
//!
//! Of a schema nothing matters here but how its bytes lie and what its fields are called: defaults, aliases and
//! documentation are the reader's business, so a mistake in them costs no record. Logical types that are not valid are
//! left out, as Avro's specification has it.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// The place of a type in its [`Schema`]; types may refer to each other in circles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TypeId(usize);

/// One schema, with all that it refers to.
#[derive(Debug)]
pub(super) struct Schema {
    types: Vec<Type>,
    root: TypeId,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Type {
    pub(super) kind: Kind,
    pub(super) logical: Option<Logical>,
}

/// How the bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Fixed(usize),
    Enum(Vec<String>),
    Array(TypeId),
    Map(TypeId),
    Union(Vec<TypeId>),
    Record(Vec<(String, TypeId)>),
    /// A named type within its own definition.
    Unfinished,
}

/// What the bytes stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Logical {
    Date,
    TimestampMillis,
    TimestampMicros,
    TimestampNanos,
    Decimal {
        scale: u32,
    },
    Uuid,
    /// Of no meaning here; only a message shows it.
    Other,
}

impl Schema {
    /// Reads `text`, and before it `references`, the named types that it refers to, each behind those that it refers to
    /// itself.
    ///
    /// # Errors
    /// What is wrong with the schema, in words for its owner.
    pub(super) fn parse(text: &str, references: &[String]) -> Result<Self, String> {
        let mut parser = Parser { types: vec![], names: HashMap::new() };
        for reference in references {
            parser.text(reference)?;
        }
        let root = parser.text(text)?;
        Ok(Self { types: parser.types, root })
    }

    pub(super) fn root(&self) -> TypeId {
        self.root
    }

    pub(super) fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0]
    }

    /// What messages call the type.
    pub(super) fn describe(&self, id: TypeId) -> String {
        let Type { kind, logical } = self.get(id);
        let name = match kind {
            Kind::Null => "null",
            Kind::Boolean => "boolean",
            Kind::Int => "int",
            Kind::Long => "long",
            Kind::Float => "float",
            Kind::Double => "double",
            Kind::Bytes => "bytes",
            Kind::String => "string",
            Kind::Fixed(size) => return format!("fixed({size}){}", shown(*logical)),
            Kind::Enum(_) => "enum",
            Kind::Array(_) => "array",
            Kind::Map(_) => "map",
            Kind::Union(_) => "union",
            Kind::Record(_) | Kind::Unfinished => "record",
        };
        format!("{name}{}", shown(*logical))
    }
}

fn shown(logical: Option<Logical>) -> String {
    match logical {
        None | Some(Logical::Other) => String::new(),
        Some(Logical::Date) => " (date)".to_owned(),
        Some(Logical::TimestampMillis) => " (timestamp-millis)".to_owned(),
        Some(Logical::TimestampMicros) => " (timestamp-micros)".to_owned(),
        Some(Logical::TimestampNanos) => " (timestamp-nanos)".to_owned(),
        Some(Logical::Decimal { scale }) => format!(" (decimal of scale {scale})"),
        Some(Logical::Uuid) => " (uuid)".to_owned(),
    }
}

struct Parser {
    types: Vec<Type>,
    /// Named types by their full names.
    names: HashMap<String, TypeId>,
}

impl Parser {
    fn text(&mut self, text: &str) -> Result<TypeId, String> {
        let json: Value = serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
        self.schema(&json, "")
    }

    fn add(&mut self, kind: Kind) -> TypeId {
        self.types.push(Type { kind, logical: None });
        TypeId(self.types.len() - 1)
    }

    /// `namespace`: of the named type around it.
    fn schema(&mut self, json: &Value, namespace: &str) -> Result<TypeId, String> {
        match json {
            Value::String(name) => self.named(name, namespace),
            Value::Array(branches) => {
                let mut ids = vec![];
                for branch in branches {
                    let id = self.schema(branch, namespace)?;
                    if matches!(self.types[id.0].kind, Kind::Union(_)) {
                        return Err("a union stands directly within a union".to_owned());
                    }
                    ids.push(id);
                }
                Ok(self.add(Kind::Union(ids)))
            }
            Value::Object(object) => self.object(object, namespace),
            other => Err(format!("`{other}` is no type")),
        }
    }

    /// A primitive type, or a named one that was defined before.
    fn named(&mut self, name: &str, namespace: &str) -> Result<TypeId, String> {
        let kind = match name {
            "null" => Kind::Null,
            "boolean" => Kind::Boolean,
            "int" => Kind::Int,
            "long" => Kind::Long,
            "float" => Kind::Float,
            "double" => Kind::Double,
            "bytes" => Kind::Bytes,
            "string" => Kind::String,
            _ => {
                let known = self.names.get(&full_name(name, namespace)).or_else(|| self.names.get(name));
                return known.copied().ok_or_else(|| format!("the type `{name}` is not defined"));
            }
        };
        Ok(self.add(kind))
    }

    fn object(&mut self, object: &Map<String, Value>, namespace: &str) -> Result<TypeId, String> {
        let of_type = object.get("type").ok_or("a type lacks `type`")?;
        let id = match of_type.as_str() {
            Some("record" | "error") => self.record(object, namespace)?,
            Some("enum") => {
                let symbols = texts(object, "symbols")?;
                let name = own_name(object, namespace)?;
                self.define(name, Kind::Enum(symbols))?
            }
            Some("fixed") => {
                let size = object.get("size").and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
                let size = size.ok_or("a fixed lacks its `size`")?;
                let name = own_name(object, namespace)?;
                self.define(name, Kind::Fixed(size))?
            }
            Some("array") => {
                let items = self.schema(object.get("items").ok_or("an array lacks its `items`")?, namespace)?;
                self.add(Kind::Array(items))
            }
            Some("map") => {
                let values = self.schema(object.get("values").ok_or("a map lacks its `values`")?, namespace)?;
                self.add(Kind::Map(values))
            }
            _ => self.schema(of_type, namespace)?,
        };
        let Some(logical) = logical(object, &self.types[id.0].kind) else { return Ok(id) };
        if matches!(of_type.as_str(), Some("record" | "error" | "enum" | "fixed" | "array" | "map")) {
            self.types[id.0].logical = Some(logical);
            return Ok(id);
        }
        // Another place may mean the type without it.
        let kind = self.types[id.0].kind.clone();
        self.types.push(Type { kind, logical: Some(logical) });
        Ok(TypeId(self.types.len() - 1))
    }

    fn record(&mut self, object: &Map<String, Value>, namespace: &str) -> Result<TypeId, String> {
        let name = own_name(object, namespace)?;
        let namespace = name.rsplit_once('.').map_or("", |(namespace, _)| namespace).to_owned();
        let id = self.define(name.clone(), Kind::Unfinished)?;
        let fields = object.get("fields").and_then(Value::as_array);
        let mut found: Vec<(String, TypeId)> = vec![];
        for field in fields.ok_or_else(|| format!("the record `{name}` lacks its `fields`"))? {
            let field_name = field.get("name").and_then(Value::as_str);
            let field_name = field_name.ok_or_else(|| format!("a field of the record `{name}` lacks its `name`"))?;
            let of_type = field.get("type");
            let of_type = of_type.ok_or_else(|| format!("the field `{field_name}` of `{name}` lacks its `type`"))?;
            if found.iter().any(|(other, _)| other == field_name) {
                return Err(format!("the record `{name}` has the field `{field_name}` twice"));
            }
            found.push((field_name.to_owned(), self.schema(of_type, &namespace)?));
        }
        self.types[id.0].kind = Kind::Record(found);
        Ok(id)
    }

    fn define(&mut self, name: String, kind: Kind) -> Result<TypeId, String> {
        if self.names.contains_key(&name) {
            return Err(format!("the type `{name}` is defined twice"));
        }
        let id = self.add(kind);
        self.names.insert(name, id);
        Ok(id)
    }
}

fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() { name.to_owned() } else { format!("{namespace}.{name}") }
}

/// The full name of the named type that `object` defines.
fn own_name(object: &Map<String, Value>, enclosing: &str) -> Result<String, String> {
    let name = object.get("name").and_then(Value::as_str).ok_or("a record, enum or fixed lacks its `name`")?;
    let namespace = object.get("namespace").and_then(Value::as_str).unwrap_or(enclosing);
    Ok(full_name(name, namespace))
}

fn texts(object: &Map<String, Value>, key: &str) -> Result<Vec<String>, String> {
    let found = object.get(key).and_then(Value::as_array);
    let texts: Option<Vec<String>> =
        found.and_then(|values| values.iter().map(|value| value.as_str().map(str::to_owned)).collect());
    texts.ok_or_else(|| format!("an enum lacks its `{key}`"))
}

fn logical(object: &Map<String, Value>, kind: &Kind) -> Option<Logical> {
    let number = |key: &str| object.get(key).map_or(Some(0), Value::as_u64);
    match (object.get("logicalType")?.as_str()?, kind) {
        ("date", Kind::Int) => Some(Logical::Date),
        ("timestamp-millis" | "local-timestamp-millis", Kind::Long) => Some(Logical::TimestampMillis),
        ("timestamp-micros" | "local-timestamp-micros", Kind::Long) => Some(Logical::TimestampMicros),
        ("timestamp-nanos" | "local-timestamp-nanos", Kind::Long) => Some(Logical::TimestampNanos),
        ("uuid", Kind::String | Kind::Fixed(16)) => Some(Logical::Uuid),
        ("decimal", Kind::Bytes | Kind::Fixed(_)) => {
            let (precision, scale) = (number("precision")?, number("scale")?);
            let valid = precision > 0 && scale <= precision;
            valid.then(|| u32::try_from(scale).ok().map(|scale| Logical::Decimal { scale })).flatten()
        }
        _ => Some(Logical::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Schema::parse(text, &[]).map(|_| ()).expect_err(text)
    }

    #[test]
    fn names_are_found_in_their_namespace_and_in_what_is_referred_to() {
        let other = r#"{"type": "enum", "namespace": "org.x", "name": "Color", "symbols": ["RED"]}"#.to_owned();
        let text = r#"{"type": "record", "name": "org.x.Event", "fields": [
            {"name": "c", "type": "Color"}, {"name": "d", "type": ["null", "org.x.Color"]},
            {"name": "next", "type": ["null", "Event"]},
            {"name": "id", "type": {"type": "fixed", "name": "Id", "size": 16, "logicalType": "uuid"}},
            {"name": "other_id", "type": "Id"}]}"#;
        let schema = Schema::parse(text, &[other]).unwrap();
        let Kind::Record(fields) = &schema.get(schema.root()).kind else { panic!("{schema:?}") };
        let of = |i: usize| schema.get(fields[i].1);
        assert_eq!(of(0).kind, Kind::Enum(vec!["RED".to_owned()]));
        let Kind::Union(branches) = &of(1).kind else { panic!("{schema:?}") };
        assert_eq!((&schema.get(branches[1]).kind, branches[1]), (&of(0).kind, fields[0].1));
        let Kind::Union(branches) = &of(2).kind else { panic!("{schema:?}") };
        assert_eq!(branches[1], schema.root(), "it refers to itself");
        assert_eq!((of(3).logical, fields[3].1), (Some(Logical::Uuid), fields[4].1));
    }

    #[test]
    fn a_logical_type_counts_only_where_it_is_valid() {
        let of = |text: &str| {
            let schema = Schema::parse(text, &[]).unwrap();
            schema.get(schema.root()).clone()
        };
        let decimal = |more: &str| of(&format!(r#"{{"type": "bytes", "logicalType": "decimal"{more}}}"#)).logical;
        assert_eq!(decimal(r#", "precision": 4, "scale": 2"#), Some(Logical::Decimal { scale: 2 }));
        assert_eq!(decimal(r#", "precision": 4"#), Some(Logical::Decimal { scale: 0 }));
        assert_eq!(decimal(""), None);
        assert_eq!(decimal(r#", "precision": 2, "scale": 4"#), None);
        assert_eq!(of(r#"{"type": "string", "logicalType": "date"}"#).logical, Some(Logical::Other));
        assert_eq!(
            of(r#"{"type": {"type": "long", "logicalType": "timestamp-micros"}}"#).logical,
            Some(Logical::TimestampMicros)
        );
    }

    #[test]
    fn what_is_no_schema_is_refused_with_its_place() {
        assert!(refused("{").contains("not JSON"));
        assert_eq!(refused("7"), "`7` is no type");
        assert_eq!(refused(r#"["null", ["int"]]"#), "a union stands directly within a union");
        assert_eq!(refused(r#""Event""#), "the type `Event` is not defined");
        let twice = r#"[{"type": "fixed", "name": "A", "size": 1}, {"type": "fixed", "name": "A", "size": 2}]"#;
        assert_eq!(refused(twice), "the type `A` is defined twice");
        let record = |fields: &str| refused(&format!(r#"{{"type": "record", "name": "R", "fields": {fields}}}"#));
        assert_eq!(record("7"), "the record `R` lacks its `fields`");
        assert_eq!(record(r#"[{"name": "a"}]"#), "the field `a` of `R` lacks its `type`");
        let a = r#"{"name": "a", "type": "int"}"#;
        assert_eq!(record(&format!("[{a}, {a}]")), "the record `R` has the field `a` twice");
    }
}
