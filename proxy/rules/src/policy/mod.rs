//! Policy: the decisions on a request that no route makes, each of them pure.

pub mod rbac;
