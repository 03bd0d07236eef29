//! Text to graph: recursive descent, driven by the op table.

use super::lexer::{Lexer, Place, Token, clip};
use crate::DType;
use crate::attr::{Attr, AttrKind, Real};
use crate::error::IrError;
use crate::graph::{Graph, NodeId, OutputKind, Value};
use crate::op::{Op, OpKind};
use crate::types::{Dim, MAX_RANK, Shape, TensorType};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weldment_artifact::error::UnknownDType;
use weldment_artifact::{InputRole, SymbolRole};

/// Most graphs of one text.
const MAX_GRAPHS: usize = weldment_artifact::limits::MAX_ENTRIES;
/// Longest text accepted, in bytes.
pub const MAX_TEXT: usize = 64 << 20;
/// Most nodes accepted.
pub const MAX_NODES: usize = 1 << 20;
/// Most operands of one node accepted: inference copies their types.
const MAX_OPERANDS: usize = 1 << 14;
/// Most numbers of a list.
const MAX_NUMBERS: usize = 1 << 16;
/// Most types read after `:`, over any op's number of results, so that a message about them stays short.
const MAX_RESULTS: usize = 8;

/// Reads one graph. Memory stays within a constant factor of the text's length.
///
/// # Errors
/// [`IrError::Parse`] with line and column, what was found and what is accepted.
pub fn parse(text: &str) -> Result<Graph, IrError> {
    let mut parser = open(text)?;
    let graph = parser.graph()?;
    if parser.token == Token::End { Ok(graph) } else { Err(parser.expected("the end of the file")) }
}

/// Reads one or several graphs, one after the other, of different names: the entries of an artifact.
///
/// # Errors
/// As [`parse`].
pub fn parse_all(text: &str) -> Result<Vec<Graph>, IrError> {
    let mut parser = open(text)?;
    let mut graphs: Vec<Graph> = Vec::new();
    loop {
        let place = parser.place;
        let graph = parser.graph()?;
        if graphs.iter().any(|other| other.name == graph.name) {
            return Err(place.error(format!("graph @{} comes twice; names must differ", clip(&graph.name))));
        }
        graphs.push(graph);
        if parser.token == Token::End {
            return Ok(graphs);
        }
        if graphs.len() == MAX_GRAPHS {
            return Err(parser.place.error(format!("more than {MAX_GRAPHS} graphs; no more are accepted")));
        }
    }
}

fn open(text: &str) -> Result<Parser<'_>, IrError> {
    let mut lexer = Lexer::new(text);
    if text.len() > MAX_TEXT {
        return Err(lexer.place().error(format!("{} bytes of text; at most {MAX_TEXT} are accepted", text.len())));
    }
    let (token, place) = lexer.next()?;
    Ok(Parser { lexer, token, place, names: BTreeMap::new() })
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The token under the cursor.
    token: Token<'a>,
    place: Place,
    names: BTreeMap<&'a str, NodeId>,
}

impl<'a> Parser<'a> {
    fn advance(&mut self) -> Result<Token<'a>, IrError> {
        let (token, place) = self.lexer.next()?;
        self.place = place;
        Ok(std::mem::replace(&mut self.token, token))
    }

    fn expected(&self, what: &str) -> IrError {
        self.place.error(format!("found {}; {what} is expected", self.token))
    }

    fn accept(&mut self, mark: char) -> Result<bool, IrError> {
        let found = self.token == Token::Mark(mark);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn mark(&mut self, mark: char) -> Result<(), IrError> {
        if self.accept(mark)? { Ok(()) } else { Err(self.expected(&format!("`{mark}`"))) }
    }

    fn keyword(&mut self, word: &str) -> Result<(), IrError> {
        if self.token != Token::Word(word) {
            return Err(self.expected(&format!("`{word}`")));
        }
        self.advance().map(|_| ())
    }

    fn word(&mut self, what: &str) -> Result<&'a str, IrError> {
        let Token::Word(word) = self.token else { return Err(self.expected(what)) };
        self.advance()?;
        Ok(word)
    }

    fn string(&mut self, what: &str) -> Result<Arc<str>, IrError> {
        let Token::Text(text) = &self.token else { return Err(self.expected(what)) };
        let text = text.as_str().into();
        self.advance()?;
        Ok(text)
    }

    /// A number of type `T`, of which `what` says the limits.
    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, IrError> {
        let value = match self.token {
            Token::Number(text) => text.parse().ok(),
            _ => None,
        };
        let value = value.ok_or_else(|| self.expected(what))?;
        self.advance()?;
        Ok(value)
    }

    /// Items between an opening mark already taken and `close`, separated by commas.
    fn list(
        &mut self,
        close: char,
        mut item: impl FnMut(&mut Parser<'a>) -> Result<(), IrError>,
    ) -> Result<(), IrError> {
        if self.accept(close)? {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.accept(close)? {
                return Ok(());
            }
            if !self.accept(',')? {
                return Err(self.expected(&format!("`,` or `{close}`")));
            }
        }
    }

    fn graph(&mut self) -> Result<Graph, IrError> {
        self.names.clear();
        self.keyword("graph")?;
        self.mark('@')?;
        let name = match &self.token {
            Token::Word(word) => (*word).to_owned(),
            Token::Text(text) => text.clone(),
            _ => return Err(self.expected("the graph's name")),
        };
        self.advance()?;
        let mut graph = Graph::new(&name);
        if self.accept('(')? {
            self.list(')', |p| p.symbol(&mut graph))?;
        }
        self.mark('{')?;
        loop {
            match self.token {
                Token::Value(_) => self.node(&mut graph)?,
                Token::Word("output") => self.output(&mut graph)?,
                Token::Mark('}') => break,
                _ => return Err(self.expected("a node (`%0 = op(...)`), `output` or `}`")),
            }
        }
        self.advance()?;
        Ok(graph)
    }

    fn symbol(&mut self, graph: &mut Graph) -> Result<(), IrError> {
        let place = self.place;
        let name = self.word("a symbol's name")?;
        if graph.symbols().contains_key(name) {
            return Err(place.error(format!("symbol {} is declared twice", clip(name))));
        }
        self.mark(':')?;
        let min = self.number("the smallest size (an integer)")?;
        if self.token != Token::Range {
            return Err(self.expected("`..`"));
        }
        self.advance()?;
        let max = self.number("the largest size (an integer)")?;
        if min > max {
            return Err(
                place.error(format!("symbol {} has the range {min}..{max}; min <= max is expected", clip(name)))
            );
        }
        let role = self.symbol_role()?;
        graph.declare(name, min, max, role);
        Ok(())
    }

    /// The role after a symbol's range, if there is one.
    fn symbol_role(&mut self) -> Result<SymbolRole, IrError> {
        let Token::Word(word) = self.token else { return Ok(SymbolRole::Plain) };
        let place = self.place;
        self.advance()?;
        Ok(match word {
            "tokens" => SymbolRole::Tokens,
            "sequences" => SymbolRole::Sequences,
            "logit_rows" => SymbolRole::LogitRows,
            "context" => SymbolRole::Context,
            "blocks" => {
                self.mark('(')?;
                let pool = self.word("the symbol of a pool")?.to_owned();
                self.mark(')')?;
                SymbolRole::Blocks(pool)
            }
            "pool" => {
                self.mark('(')?;
                let positions = self.number("positions of a block (an integer)")?;
                self.mark(')')?;
                SymbolRole::Pool(positions)
            }
            other => {
                return Err(place.error(format!(
                    "{} is no role of a symbol; tokens, sequences, logit_rows, context, blocks(POOL) or pool(POSITIONS) is \
                     expected",
                    clip(other)
                )));
            }
        })
    }

    fn node(&mut self, graph: &mut Graph) -> Result<(), IrError> {
        let place = self.place;
        let Token::Value(name) = self.token else { return Err(self.expected("a value's name")) };
        self.advance()?;
        if self.names.contains_key(name) {
            return Err(place.error(format!("%{} is defined twice", clip(name))));
        }
        if graph.len() >= MAX_NODES {
            return Err(place.error(format!("more than {MAX_NODES} nodes; no more are accepted")));
        }
        let count_place = self.place;
        let count: Option<usize> = if self.accept(':')? { Some(self.number("the number of results")?) } else { None };
        self.mark('=')?;
        let place = self.place;
        let kind = OpKind::from_name(self.word("an op's name")?).map_err(|e| place.error(clip_error(&e)))?;
        let mut operands = Vec::new();
        if self.accept('(')? {
            self.list(')', |p| {
                if operands.len() == MAX_OPERANDS {
                    return Err(p.place.error(format!("more than {MAX_OPERANDS} operands; no more are accepted")));
                }
                operands.push(p.value(graph)?);
                Ok(())
            })?;
        }
        let op = self.attributes(kind, graph, place)?;
        let stated = self.types(graph)?;
        let sources = self.sources()?;

        let id = graph.add(op, &operands, sources).map_err(|e| {
            place.error(match e {
                IrError::InvalidGraph { message, .. } => message,
                other => other.to_string(),
            })
        })?;
        let types = &graph.node(id).types;
        if let Some(wide) = types.iter().find(|t| t.rank() > MAX_RANK) {
            return Err(place.error(format!("{kind} gives rank {}; at most {MAX_RANK} is accepted", wide.rank())));
        }
        if count.is_some_and(|n| n != types.len()) {
            return Err(count_place.error(format!("{kind} has {} results", types.len())));
        }
        if let Some((stated, place)) = stated
            && stated != *types
        {
            let list = |types: &[TensorType]| types.iter().map(TensorType::to_string).collect::<Vec<_>>().join(", ");
            return Err(place.error(format!("type {} is stated; {kind} gives {}", list(&stated), list(types))));
        }
        self.names.insert(name, id);
        Ok(())
    }

    fn value(&mut self, graph: &Graph) -> Result<Value, IrError> {
        let place = self.place;
        let Token::Value(name) = self.token else { return Err(self.expected("a value (`%0`)")) };
        self.advance()?;
        let node = *self.names.get(name).ok_or_else(|| {
            place.error(format!("%{} is not defined; a value must be defined before it is used", clip(name)))
        })?;
        let result: u32 = if self.accept('.')? { self.number("a result's number")? } else { 0 };
        let results = graph.node(node).types.len();
        if result as usize >= results {
            return Err(place.error(format!("%{} has {results} results; .{result} is not one", clip(name))));
        }
        Ok(Value { node, result })
    }

    fn attributes(&mut self, kind: OpKind, graph: &Graph, place: Place) -> Result<Op, IrError> {
        let table = kind.info().attrs;
        let mut found: Vec<Option<Attr>> = vec![None; table.len()];
        if self.accept('{')? {
            self.list('}', |p| {
                let at = p.place;
                let name = p.word("an attribute's name")?;
                let Some(i) = table.iter().position(|(n, _)| *n == name) else {
                    let names: Vec<&str> = table.iter().map(|(n, _)| *n).collect();
                    return Err(at.error(format!(
                        "{kind} has no attribute {}; it has [{}]",
                        clip(name),
                        names.join(", ")
                    )));
                };
                p.mark(':')?;
                if found[i].replace(p.attribute(table[i].1, graph)?).is_some() {
                    return Err(at.error(format!("attribute {name} is given twice")));
                }
                Ok(())
            })?;
        }
        for (value, default) in found.iter_mut().zip((kind.info().defaults)()) {
            *value = value.take().or(default);
        }
        if let Some(i) = found.iter().position(Option::is_none) {
            return Err(place.error(format!("{kind} needs the attribute {} ({:?})", table[i].0, table[i].1)));
        }
        let attrs: Vec<Attr> = found.into_iter().flatten().collect();
        Op::from_attrs(kind, &attrs).map_err(|e| place.error(e.to_string()))
    }

    fn attribute(&mut self, kind: AttrKind, graph: &Graph) -> Result<Attr, IrError> {
        Ok(match kind {
            AttrKind::Int => Attr::Int(self.number("a 64-bit integer")?),
            AttrKind::Real => Attr::Real(self.real()?),
            AttrKind::Flag => match self.token {
                Token::Word(word @ ("true" | "false")) => {
                    self.advance()?;
                    Attr::Flag(word == "true")
                }
                _ => return Err(self.expected("`true` or `false`")),
            },
            AttrKind::DType => Attr::DType(self.dtype()?),
            AttrKind::Ints => {
                let mut ints = Vec::new();
                self.mark('[')?;
                self.list(']', |p| {
                    p.room(ints.len())?;
                    ints.push(p.number("a 64-bit integer")?);
                    Ok(())
                })?;
                Attr::Ints(ints)
            }
            AttrKind::Reals => {
                let mut reals = Vec::new();
                self.mark('[')?;
                self.list(']', |p| {
                    if reals.len() == MAX_NUMBERS {
                        return Err(p.place.error(format!("more than {MAX_NUMBERS} numbers; no more are accepted")));
                    }
                    reals.push(p.real()?);
                    Ok(())
                })?;
                Attr::Reals(reals)
            }
            AttrKind::Shape => Attr::Shape(self.shape(graph)?),
            AttrKind::Text => Attr::Text(self.string("a quoted text")?),
            AttrKind::Role => {
                let place = self.place;
                let word = self.word("a role")?;
                let words = InputRole::ALL.map(InputRole::word).join(", ");
                let role = InputRole::from_word(word);
                Attr::Role(role.ok_or_else(|| {
                    place.error(format!("{} is no role of an input; one of {words} is expected", clip(word)))
                })?)
            }
        })
    }

    fn real(&mut self) -> Result<Real, IrError> {
        let place = self.place;
        let value: f64 = self.number("a number")?;
        if value.is_finite() { Ok(Real(value)) } else { Err(place.error("the number is too large for f64")) }
    }

    /// Refuses item number `length` of a shape or permutation that is longer than any tensor's.
    fn room(&self, length: usize) -> Result<(), IrError> {
        if length < MAX_RANK {
            return Ok(());
        }
        Err(self.place.error(format!("more than {MAX_RANK} entries; at most {MAX_RANK} dims are accepted")))
    }

    fn dtype(&mut self) -> Result<DType, IrError> {
        let place = self.place;
        self.word("a dtype")?.parse().map_err(|e: UnknownDType| place.error(clip_error(&e.into())))
    }

    fn shape(&mut self, graph: &Graph) -> Result<Shape, IrError> {
        let mut shape = Shape::new();
        self.mark('[')?;
        self.list(']', |p| {
            p.room(shape.len())?;
            if let Token::Word(word) = p.token {
                let Some((name, _)) = graph.symbols().get_key_value(word) else {
                    let names: Vec<&str> = graph.symbols().keys().map(|s| &**s).collect();
                    let message = format!("symbol {} is not declared; [{}] are", clip(word), names.join(", "));
                    return Err(p.place.error(message));
                };
                // The declaration's own text, so that dims share one allocation.
                shape.push(Dim::Sym(name.clone()));
                p.advance()?;
            } else {
                shape.push(Dim::Const(p.number("a dim (an integer or a symbol)")?));
            }
            Ok(())
        })?;
        Ok(shape)
    }

    /// Types after `:`, if any, and where they start.
    fn types(&mut self, graph: &Graph) -> Result<Option<(Vec<TensorType>, Place)>, IrError> {
        if !self.accept(':')? {
            return Ok(None);
        }
        let place = self.place;
        let mut types = Vec::new();
        loop {
            if types.len() == MAX_RESULTS {
                return Err(self.place.error(format!("more than {MAX_RESULTS} types; no op has so many results")));
            }
            let dtype = self.dtype()?;
            types.push(TensorType { dtype, shape: self.shape(graph)? });
            if !self.accept(',')? {
                return Ok(Some((types, place)));
            }
        }
    }

    fn sources(&mut self) -> Result<BTreeSet<Arc<str>>, IrError> {
        let mut sources = BTreeSet::new();
        if self.accept('@')? {
            loop {
                sources.insert(self.string("a quoted source path")?);
                if !self.accept(',')? {
                    break;
                }
            }
        }
        Ok(sources)
    }

    fn output(&mut self, graph: &mut Graph) -> Result<(), IrError> {
        self.keyword("output")?;
        let kind = match self.token {
            Token::Word("result") => OutputKind::Result,
            Token::Word("state") => OutputKind::State,
            _ => return Err(self.expected("`result` or `state`")),
        };
        self.advance()?;
        let name = self.string("the output's quoted name")?;
        self.mark('=')?;
        let value = self.value(graph)?;
        graph.output(&name, kind, value);
        Ok(())
    }
}

fn clip_error(e: &IrError) -> String {
    match e {
        IrError::UnknownDType(UnknownDType(name)) => UnknownDType(clip(name).to_owned()).to_string(),
        IrError::UnknownOp(name) => IrError::UnknownOp(clip(name).to_owned()).to_string(),
        other => other.to_string(),
    }
}
