//! A parser by recursive descent, after the grammar of the CEL specification.

use std::sync::Arc;

use super::ast::{Call, Entry, Expr, Literal, Node, Operator};
use super::lexer::{Lexeme, Token, lex};
use super::macros::{Expansion, expand};
use crate::error::Issue;

/// Longest source, in characters; cel-go's limit.
const MAX_SOURCE: usize = 100_000;
/// Deepest nesting, of brackets and of the tree; cel-go's limit. It bounds the stack of everything that walks
/// the tree.
const MAX_DEPTH: u32 = 250;
/// Deepest nesting of brackets and prefix operators: each level takes the parser a dozen calls.
const MAX_NESTING: u32 = 100;

/// Words that name no variable.
const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// What may begin an operand, as cel-go's parser lists it.
const OPERAND: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

/// Parses an expression.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse(source: &str) -> Result<Node, Issue> {
    let length = source.chars().count();
    if length > MAX_SOURCE {
        return Err(Issue::new(
            0,
            format!("expression code point size exceeds limit: size: {length}, limit {MAX_SOURCE}"),
        ));
    }
    let mut parser = Parser {
        source,
        lexemes: lex(source)?,
        next: 0,
        nesting: 0,
    };
    let node = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(node),
        _ => Err(parser.unexpected("<EOF>")),
    }
}

struct Parser<'s> {
    source: &'s str,
    lexemes: Vec<Lexeme>,
    next: usize,
    nesting: u32,
}

type Parsed = Result<Node, Issue>;

impl Parser<'_> {
    // The list of lexemes ends with `End`, which is never passed.
    fn current(&self) -> &Lexeme {
        &self.lexemes[self.next.min(self.lexemes.len() - 1)]
    }

    fn peek(&self) -> &Token {
        &self.current().token
    }

    fn at(&self) -> usize {
        self.current().at
    }

    fn advance(&mut self) -> Lexeme {
        let lexeme = self.current().clone();
        self.next = (self.next + 1).min(self.lexemes.len() - 1);
        lexeme
    }

    fn take(&mut self, sign: &'static str) -> bool {
        let is = *self.peek() == Token::Sign(sign);
        if is {
            self.advance();
        }
        is
    }

    fn expect(&mut self, sign: &'static str) -> Result<(), Issue> {
        if self.take(sign) {
            return Ok(());
        }
        Err(self.unexpected(&format!("'{sign}'")))
    }

    fn unexpected(&self, expected: &str) -> Issue {
        let lexeme = self.current();
        let found = match lexeme.token {
            Token::End => "<EOF>",
            _ => &self.source[lexeme.at..lexeme.end],
        };
        Issue::new(
            lexeme.at,
            format!("Syntax error: mismatched input '{found}' expecting {expected}"),
        )
    }

    fn node(&self, at: usize, expr: Expr) -> Parsed {
        let depth = 1 + expr.children().iter().map(|n| n.depth).max().unwrap_or(0);
        if depth > MAX_DEPTH {
            return Err(too_deep(at));
        }
        Ok(Node {
            at: at as u32,
            depth,
            expr,
        })
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Issue>) -> Result<T, Issue> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(too_deep(self.at()));
        }
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }

    fn expression(&mut self) -> Parsed {
        self.nested(Self::conditional)
    }

    fn conditional(&mut self) -> Parsed {
        let condition = self.or()?;
        let at = self.at();
        if !self.take("?") {
            return Ok(condition);
        }
        let yes = self.or()?;
        self.expect(":")?;
        let no = self.expression()?;
        self.node(at, Expr::Conditional(Box::new([condition, yes, no])))
    }

    fn or(&mut self) -> Parsed {
        let first = self.and()?;
        let at = self.at();
        let mut terms = vec![first];
        while self.take("||") {
            terms.push(self.and()?);
        }
        match terms.len() {
            1 => terms.pop().ok_or_else(|| self.unexpected(OPERAND)),
            _ => self.node(at, Expr::Or(terms)),
        }
    }

    fn and(&mut self) -> Parsed {
        let first = self.relation()?;
        let at = self.at();
        let mut terms = vec![first];
        while self.take("&&") {
            terms.push(self.relation()?);
        }
        match terms.len() {
            1 => terms.pop().ok_or_else(|| self.unexpected(OPERAND)),
            _ => self.node(at, Expr::And(terms)),
        }
    }

    fn operator(&self, table: &[(&str, Operator)]) -> Option<Operator> {
        let Token::Sign(sign) = self.peek() else {
            return None;
        };
        table.iter().find(|(s, _)| s == sign).map(|(_, op)| *op)
    }

    fn chain(&mut self, table: &[(&str, Operator)], operand: fn(&mut Self) -> Parsed) -> Parsed {
        let mut left = operand(self)?;
        while let Some(operator) = self.operator(table) {
            let at = self.advance().at;
            let right = operand(self)?;
            left = self.node(at, Expr::Binary(operator, Box::new([left, right])))?;
        }
        Ok(left)
    }

    fn relation(&mut self) -> Parsed {
        const TABLE: [(&str, Operator); 7] = [
            ("==", Operator::Equal),
            ("!=", Operator::NotEqual),
            ("<", Operator::Less),
            ("<=", Operator::LessEqual),
            (">", Operator::Greater),
            (">=", Operator::GreaterEqual),
            ("in", Operator::In),
        ];
        self.chain(&TABLE, Self::sum)
    }

    fn sum(&mut self) -> Parsed {
        const TABLE: [(&str, Operator); 2] = [("+", Operator::Add), ("-", Operator::Subtract)];
        self.chain(&TABLE, Self::product)
    }

    fn product(&mut self) -> Parsed {
        const TABLE: [(&str, Operator); 3] = [
            ("*", Operator::Multiply),
            ("/", Operator::Divide),
            ("%", Operator::Modulo),
        ];
        self.chain(&TABLE, Self::unary)
    }

    fn unary(&mut self) -> Parsed {
        let at = self.at();
        if self.take("!") {
            let operand = self.nested(Self::unary)?;
            return self.node(at, Expr::Not(Box::new(operand)));
        }
        if !self.take("-") {
            return self.member();
        }
        if *self.peek() == Token::MinMagnitude {
            self.advance();
            let node = self.node(at, Expr::Literal(Literal::Int(i64::MIN)))?;
            return self.suffixes(node);
        }
        let operand = self.nested(Self::unary)?;
        // A sign in front of a number belongs to it.
        let expr = match operand.expr {
            Expr::Literal(Literal::Int(number)) if number >= 0 => {
                Expr::Literal(Literal::Int(-number))
            }
            Expr::Literal(Literal::Double(number)) => Expr::Literal(Literal::Double(-number)),
            _ => Expr::Negate(Box::new(operand)),
        };
        self.node(at, expr)
    }

    fn member(&mut self) -> Parsed {
        let primary = self.primary()?;
        self.suffixes(primary)
    }

    fn suffixes(&mut self, mut node: Node) -> Parsed {
        loop {
            let at = self.at();
            if self.take(".") {
                let optional = self.take("?");
                let (field, quoted) = self.field_name()?;
                if !optional && !quoted && *self.peek() == Token::Sign("(") {
                    let call_at = self.at();
                    self.advance();
                    let args = self.arguments()?;
                    node = self.call(call_at, &field, Some(node), args)?;
                    continue;
                }
                let select = Expr::Select {
                    of: Box::new(node),
                    field,
                    optional,
                    test: false,
                };
                node = self.node(at, select)?;
            } else if self.take("[") {
                let optional = self.take("?");
                let index = self.expression()?;
                self.expect("]")?;
                let index = Expr::Index {
                    of: Box::new(node),
                    index: Box::new(index),
                    optional,
                };
                node = self.node(at, index)?;
            } else if *self.peek() == Token::Sign("{")
                && let Some(name) = node.dotted()
            {
                self.advance();
                let fields = self.struct_fields()?;
                node = self.node(at, Expr::Struct(name.into(), fields))?;
            } else {
                return Ok(node);
            }
        }
    }

    fn field_name(&mut self) -> Result<(Arc<str>, bool), Issue> {
        match self.peek().clone() {
            Token::Ident(name) => {
                self.advance();
                Ok((name, false))
            }
            Token::Quoted(name) => {
                self.advance();
                Ok((name, true))
            }
            _ => Err(self.unexpected("IDENTIFIER")),
        }
    }

    fn call(&self, at: usize, function: &str, target: Option<Node>, args: Vec<Node>) -> Parsed {
        let expr = match expand(function, target, args)? {
            Expansion::Done(expr) => expr,
            Expansion::Call(target, args) => Expr::Call(Box::new(Call {
                function: function.into(),
                target,
                args,
                builtin: None,
            })),
        };
        self.node(at, expr)
    }

    fn primary(&mut self) -> Parsed {
        let at = self.at();
        match self.peek().clone() {
            Token::Literal(literal) => {
                self.advance();
                self.node(at, Expr::Literal(literal))
            }
            Token::MinMagnitude => Err(Issue::new(
                at,
                "Syntax error: invalid int literal".to_owned(),
            )),
            Token::Ident(name) => {
                self.advance();
                self.name(at, name)
            }
            // A leading dot means the root of names, which here is the only place they are looked up.
            Token::Sign(".") => {
                self.advance();
                let Token::Ident(name) = self.peek().clone() else {
                    return Err(self.unexpected("IDENTIFIER"));
                };
                self.advance();
                self.name(at, name)
            }
            Token::Sign("(") => {
                self.advance();
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("[") => {
                self.advance();
                let items = self.list_items()?;
                self.node(at, Expr::List(items))
            }
            Token::Sign("{") => {
                self.advance();
                let entries = self.map_entries()?;
                self.node(at, Expr::Map(entries))
            }
            _ => Err(self.unexpected(OPERAND)),
        }
    }

    fn name(&mut self, at: usize, name: Arc<str>) -> Parsed {
        if RESERVED.contains(&&*name) {
            return Err(Issue::new(
                at,
                format!("Syntax error: reserved identifier: {name}"),
            ));
        }
        let call_at = self.at();
        if self.take("(") {
            let args = self.arguments()?;
            return self.call(call_at, &name, None, args);
        }
        self.node(at, Expr::Ident(name))
    }

    fn arguments(&mut self) -> Result<Vec<Node>, Issue> {
        let mut args = Vec::new();
        if self.take(")") {
            return Ok(args);
        }
        loop {
            args.push(self.expression()?);
            if self.take(")") {
                return Ok(args);
            }
            self.expect(",")?;
        }
    }

    fn list_items(&mut self) -> Result<Vec<Entry<()>>, Issue> {
        self.entries("]", |parser| {
            let optional = parser.take("?");
            Ok(Entry {
                key: (),
                value: parser.expression()?,
                optional,
            })
        })
    }

    fn map_entries(&mut self) -> Result<Vec<Entry<Node>>, Issue> {
        self.entries("}", |parser| {
            let optional = parser.take("?");
            let key = parser.expression()?;
            parser.expect(":")?;
            Ok(Entry {
                key,
                value: parser.expression()?,
                optional,
            })
        })
    }

    fn struct_fields(&mut self) -> Result<Vec<Entry<Arc<str>>>, Issue> {
        self.entries("}", |parser| {
            let optional = parser.take("?");
            let (key, _) = parser.field_name()?;
            parser.expect(":")?;
            Ok(Entry {
                key,
                value: parser.expression()?,
                optional,
            })
        })
    }

    /// A list up to a closing sign, with an optional last comma.
    fn entries<K>(
        &mut self,
        close: &'static str,
        mut entry: impl FnMut(&mut Self) -> Result<Entry<K>, Issue>,
    ) -> Result<Vec<Entry<K>>, Issue> {
        let mut entries = Vec::new();
        loop {
            if self.take(close) {
                return Ok(entries);
            }
            entries.push(entry(self)?);
            if self.take(close) {
                return Ok(entries);
            }
            self.expect(",")?;
        }
    }
}

fn too_deep(at: usize) -> Issue {
    Issue::new(
        at,
        format!("expression recursion limit exceeded: {MAX_DEPTH}"),
    )
}
