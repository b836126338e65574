//! Tests against real engines, one file a command.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]

mod bench;
mod bench_debian;
mod builder;
mod cancel;
mod carry;
mod carry_across;
mod carry_debian;
mod clear;
mod clear_mounts;
mod complete;
mod doctor;
mod doctor_caches;
mod doctor_containers;
mod doctor_project;
mod explain;
mod hooks;
mod layers;
mod limits;
mod owner;
mod platform;
mod registry;
mod size;
#[path = "../support/mod.rs"]
mod support;
mod warm;
