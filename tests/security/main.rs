//! Requests that must be refused. Apart from the other tests of the mesh, some of which measure time.
#![allow(clippy::too_many_lines)]

mod closed;
mod directories;
mod named;
mod plain_reading;
mod selection;
