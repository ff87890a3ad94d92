//! End-to-end tests of the built binary, the built plugins and the shipped model, as a user has them.

mod bad_input;
mod can;
mod cases;
mod cli;
mod doctor;
mod evaluate;
mod images;
mod kill;
mod limits;
mod models;
mod plugin;
mod processes;
mod report;
mod sample;
mod sdk;
mod sharing;
mod support;
mod tidy;
mod train;
