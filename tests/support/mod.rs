//! The test bench: real engines of three generations, real builders, real package managers, and no registry.
//!
//! Every [`Engine`] is private to its test and leaves nothing behind. A test that cannot run fails and says what is missing.
//! Engines live below TMPDIR; `TMPDIR=/dev/shm` makes the tests with large images twice as fast.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]
// Every test target compiles this module and uses a part of it.
#![allow(dead_code, unused_imports)]

pub mod debian;
pub mod engine;
pub mod meter;
pub mod parts;
pub mod plugin;
pub mod process;
pub mod registry;
pub mod world;

pub use engine::{Engine, Generation};

/// Makes one `#[test]` of each named engine from one body: `size_lists_mounts::v26`, `size_lists_mounts::v28_containerd`.
///
/// ```ignore
/// for_each_engine!(size_lists_mounts, [v26, v28_containerd], |engine| {
///     let run = engine.cache(&["size"]);
///     assert_eq!(run.code, 0, "{run}");
/// });
/// ```
/// `[all]` stands for every generation.
#[macro_export]
macro_rules! for_each_engine {
    ($name:ident, [all], $body:expr) => {
        $crate::for_each_engine!($name, [v20, v26, v26_containerd, v28, v28_containerd], $body);
    };
    ($name:ident, [$($generation:ident),+ $(,)?], $body:expr) => {
        $crate::for_each_generation!($name, [$($generation),+], |generation| {
            let body: fn(&$crate::support::Engine) = $body;
            body(&$crate::support::Engine::start(generation));
        });
    };
}

/// The same for tests that start their engines themselves: the body is given the generation.
#[macro_export]
macro_rules! for_each_generation {
    ($name:ident, [$($generation:ident),+ $(,)?], $body:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn body(generation: $crate::support::Generation) {
                let body: fn($crate::support::Generation) = $body;
                body(generation);
            }

            $(#[test]
            fn $generation() {
                body($crate::support::Generation::named(stringify!($generation)));
            })+
        }
    };
}
