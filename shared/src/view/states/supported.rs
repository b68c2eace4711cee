//! The aggregates that views may use, and the format number of each one's state.

/// What must be known of an aggregate before a view may use it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Supported {
    pub(crate) name: &'static str,
    /// The state's layout, part of a view's definition. Raise it by hand when an engine upgrade changes what the
    /// accumulator's state means; golden files guard it.
    pub(crate) format: u32,
    pub(crate) order: OrderDependence,
    /// Whether DISTINCT is known to be kept in the state.
    pub(crate) distinct: bool,
    /// The state holds every value, even without DISTINCT.
    pub(crate) keeps_values: bool,
}

/// Whether the order of events changes an aggregate's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrderDependence {
    None,
    /// It gets `_partition, _offset` as its order, or as tie-break behind its own ORDER BY.
    Ordered,
    /// As `Ordered`, and its accumulator needs its input sorted.
    OrderedInput,
}

/// The entry of the aggregate that the engine calls `name`; `None`: views may not use it.
pub(crate) fn supported(name: &str) -> Option<&'static Supported> {
    SUPPORTED.iter().find(|s| s.name == name)
}

/// The names of all, for messages.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    SUPPORTED.iter().map(|s| s.name)
}

const fn plain(name: &'static str, format: u32) -> Supported {
    Supported { name, format, order: OrderDependence::None, distinct: false, keeps_values: false }
}

const fn with_distinct(name: &'static str, format: u32) -> Supported {
    Supported { distinct: true, ..plain(name, format) }
}

const fn every_value(name: &'static str, format: u32, order: OrderDependence, distinct: bool) -> Supported {
    Supported { name, format, order, distinct, keeps_values: true }
}

const fn ordered(name: &'static str, format: u32) -> Supported {
    Supported { order: OrderDependence::Ordered, ..plain(name, format) }
}

const SUPPORTED: &[Supported] = &[
    with_distinct("count", 1),
    with_distinct("sum", 1),
    with_distinct("avg", 1),
    with_distinct("min", 1),
    with_distinct("max", 1),
    plain("stddev", 1),
    plain("stddev_pop", 1),
    plain("var", 1),
    plain("var_pop", 1),
    plain("covar_samp", 1),
    plain("covar_pop", 1),
    plain("corr", 1),
    plain("regr_slope", 1),
    plain("regr_intercept", 1),
    plain("regr_count", 1),
    plain("regr_r2", 1),
    plain("regr_avgx", 1),
    plain("regr_avgy", 1),
    plain("regr_sxx", 1),
    plain("regr_syy", 1),
    plain("regr_sxy", 1),
    plain("approx_distinct", 1),
    plain("approx_percentile_cont", 1),
    plain("approx_median", 1),
    plain("bool_and", 1),
    plain("bool_or", 1),
    plain("bit_and", 1),
    plain("bit_or", 1),
    // The engine's grouped bit_xor forgets DISTINCT.
    plain("bit_xor", 1),
    every_value("median", 1, OrderDependence::None, true),
    every_value("percentile_cont", 1, OrderDependence::None, false),
    every_value("array_agg", 1, OrderDependence::Ordered, true),
    every_value("string_agg", 1, OrderDependence::Ordered, true),
    ordered("first_value", 1),
    ordered("last_value", 1),
    Supported { order: OrderDependence::OrderedInput, ..plain("nth_value", 1) },
];
