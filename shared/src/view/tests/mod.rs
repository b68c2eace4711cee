//! Views against the plain query over all events.

mod equal;
mod exact;
mod failing;
mod fixture;
mod formats;
mod parallel;
mod places;
mod plans;
mod refused;
mod reused;
