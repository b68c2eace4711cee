//! Tests of the speed layer as its users see it.

mod maxima;
mod mutants;
mod oracle;
mod real;
mod sled;
mod views;
mod world;
