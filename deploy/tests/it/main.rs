//! Tests of the whole program.

mod acls;
mod backlog;
mod boundary;
mod brokers;
mod changes;
mod check;
mod command_line;
mod demo;
mod deployment;
mod harness;
mod hdfs;
mod losses;
mod mutants;
mod oracle;
mod partitions;
mod processes;
mod produce;
mod program;
mod real_input;
mod roles;
mod schedules;
mod secured;
mod serving;
mod status;
mod transactions;
mod truncation;
