//! Shows, explains, cleans and carries every cache that Docker builds and dev containers use.
//!
//! From top to bottom: [`cli`] and [`plugin`] read the command line, [`hooks`] answer after builds, [`commands`] do one
//! command each; [`image`], [`inventory`], [`ownership`], [`buildcontext`], [`builders`], [`history`], [`state`],
//! [`rewrite`], [`docker`] and [`place`] touch the world; [`budget`], [`catalogue`], [`explain`], [`model`] and [`plan`] are
//! pure; [`report`] prints. [`inside`] is what the same binary does within an engine. [`cancel`] is how all of it stops.

pub mod answers;
pub mod budget;
pub mod buildcontext;
pub mod builders;
pub mod bundle;
pub mod cancel;
pub mod catalogue;
pub mod checks;
pub mod cli;
pub mod commands;
pub mod docker;
pub mod dockerfile;
pub mod exit;
pub mod explain;
pub mod history;
pub mod hooks;
pub mod image;
pub mod inside;
pub mod inventory;
pub mod lockfiles;
pub mod model;
pub mod ownership;
pub mod parallel;
pub mod place;
pub mod plan;
pub mod plugin;
pub mod project;
pub mod report;
pub mod rewrite;
pub mod state;
