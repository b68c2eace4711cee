//! The serving layer over real parts: compiled views, runs and a master dataset in a storage; the delta is fed by the
//! tests.

mod clients;
mod damage;
mod http;
mod retention;
mod statements;
mod swaps;
mod world;
