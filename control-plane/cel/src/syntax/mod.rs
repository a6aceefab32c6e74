//! From text to syntax tree: lexer, parser and macros.

pub mod ast;
mod lexer;
mod literal;
mod macros;
mod parser;

pub use parser::parse;

#[cfg(test)]
mod tests;
