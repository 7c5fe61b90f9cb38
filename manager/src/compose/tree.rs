//! YAML as a tree that remembers where everything stood, with its aliases, merges and variables resolved.
//!
//! Scalars stay text: what `no`, `1.10` or `012` means is decided by the key it is the value of, so nothing is lost by
//! guessing a type first. Depth, nodes and bytes are bounded, those that aliases repeat included.

use std::collections::HashMap;

use granit_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput, Tag, options};

use super::{
    interpolate::{Lookup, interpolate},
    report::{Pos, Report, key_path, quoted, short},
};

pub(super) const MAX_TEXT: usize = 1 << 20;
const MAX_DEPTH: usize = 32;
const MAX_NODES: usize = 50_000;
const MAX_BYTES: usize = 8 << 20;

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) at: Pos,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    /// `plain` is without quotes: only then `true` can be a boolean.
    Scalar {
        text: String,
        plain: bool,
    },
    Seq(Vec<Node>),
    Map(Vec<(Key, Node)>),
    /// Reported already; whatever reads it says nothing more.
    Broken,
}

#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) at: Pos,
    pub(super) text: String,
}

/// What stops the reading of a file; it is in the report.
pub(super) struct Stop;

/// The document in `text`; `None` when it is empty.
pub(super) fn read(text: &str, lookup: Lookup<'_>, report: &mut Report) -> Result<Option<Node>, Stop> {
    if text.len() > MAX_TEXT {
        report.error(Pos { line: 1, column: 1 }, "", format!("is longer than {MAX_TEXT} bytes"));
        return Err(Stop);
    }
    let options = options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let parser = Parser::new_from_str_with_options(text, options);
    Builder { parser, lookup, report, anchors: HashMap::new(), nodes: 0, bytes: 0, depth: 0 }.document()
}

struct Anchored {
    node: Node,
    nodes: usize,
    bytes: usize,
    height: usize,
}

struct Builder<'i, 'r> {
    parser: Parser<'i, StrInput<'i>>,
    lookup: Lookup<'r>,
    report: &'r mut Report,
    anchors: HashMap<usize, Anchored>,
    nodes: usize,
    bytes: usize,
    depth: usize,
}

fn pos(marker: &Marker) -> Pos {
    Pos { line: marker.line(), column: marker.col() + 1 }
}

impl<'i> Builder<'i, '_> {
    fn stop<T>(&mut self, at: Pos, path: &str, message: impl Into<String>) -> Result<T, Stop> {
        self.report.error(at, path, message);
        Err(Stop)
    }

    fn next(&mut self) -> Result<(Event<'i>, Span), Stop> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => {
                let at = pos(error.marker());
                // The parser's own rendering ends in the place, which the report says already.
                self.stop(at, "", format!("is not YAML: {}", error.kind()))
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn document(mut self) -> Result<Option<Node>, Stop> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(root),
                Event::DocumentStart(..) if root.is_some() => {
                    return self.stop(pos(&span.start), "", "a second document begins; one file is one document");
                }
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd | Event::Comment(..) => {}
                event => root = Some(self.node(event, span, "")?),
            }
        }
    }

    fn charge(&mut self, at: Pos, path: &str, nodes: usize, bytes: usize) -> Result<(), Stop> {
        self.nodes = self.nodes.saturating_add(nodes);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.nodes > MAX_NODES || self.bytes > MAX_BYTES {
            return self.stop(at, path, "the document is too large once its aliases and variables are put in");
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'i>, span: Span, path: &str) -> Result<Node, Stop> {
        let at = pos(&span.start);
        let (nodes, bytes) = (self.nodes, self.bytes);
        self.charge(at, path, 1, 0)?;
        let (value, anchor) = match event {
            Event::Alias(anchor) => return self.alias(anchor, at, path),
            Event::Scalar(text, style, anchor, tag) => (self.scalar(&text, style, tag.as_deref(), at, path)?, anchor),
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "seq", at, path);
                (Value::Seq(self.nested(at, path, Self::sequence)?), anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "map", at, path);
                (Value::Map(self.nested(at, path, Self::mapping)?), anchor)
            }
            _ => return self.stop(at, path, "is not YAML: a value was expected"),
        };
        let node = Node { at, value };
        if anchor != 0 {
            let (nodes, bytes) = (self.nodes - nodes, self.bytes - bytes);
            self.charge(at, path, nodes, bytes)?;
            self.anchors.insert(anchor, Anchored { node: node.clone(), nodes, bytes, height: height(&node) });
        }
        Ok(node)
    }

    fn nested<T>(
        &mut self,
        at: Pos,
        path: &str,
        inner: impl FnOnce(&mut Self, &str) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.stop(at, path, format!("is nested deeper than {MAX_DEPTH} levels"));
        }
        let read = inner(self, path)?;
        self.depth -= 1;
        Ok(read)
    }

    fn alias(&mut self, anchor: usize, at: Pos, path: &str) -> Result<Node, Stop> {
        let Some(anchored) = self.anchors.get(&anchor) else {
            return self.stop(at, path, "the alias is inside what it stands for");
        };
        let (nodes, bytes, height, node) = (anchored.nodes, anchored.bytes, anchored.height, anchored.node.clone());
        self.charge(at, path, nodes, bytes)?;
        if self.depth + height > MAX_DEPTH {
            return self.stop(at, path, format!("is nested deeper than {MAX_DEPTH} levels"));
        }
        Ok(node)
    }

    /// Whether `tag` is none, or the one `allowed` here; reported otherwise.
    fn check_tag(&mut self, tag: Option<&Tag>, allowed: &str, at: Pos, path: &str) -> bool {
        let Some(tag) = tag.filter(|tag| tag.core_suffix() != Some(allowed)) else { return true };
        let shown = quoted(&format!("{}{}", tag.original_handle(), tag.suffix()));
        self.report.error(at, path, format!("the tag {shown} is not supported here; leave it out"));
        false
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
        at: Pos,
        path: &str,
    ) -> Result<Value, Stop> {
        let mut plain = style == ScalarStyle::Plain;
        match tag.map(|tag| (tag, tag.core_suffix())) {
            None | Some((_, Some("int" | "float" | "bool" | "null"))) => {}
            Some((_, Some("str"))) => plain = false,
            Some((tag, _)) => {
                self.check_tag(Some(tag), "str", at, path);
                return Ok(Value::Broken);
            }
        }
        if plain && matches!(text, "" | "~" | "null" | "Null" | "NULL") {
            return Ok(Value::Null);
        }
        let mut unset = Vec::new();
        let value = match interpolate(text, self.lookup, &mut unset) {
            Ok(text) => Value::Scalar { text, plain },
            Err(error) => {
                self.report.error(at, path, error.to_string());
                Value::Broken
            }
        };
        for name in unset {
            self.report.warning(at, path, format!("the variable {} is not set and taken as empty", short(&name)));
        }
        if let Value::Scalar { text, .. } = &value {
            self.charge(at, path, 0, text.len())?;
        }
        Ok(value)
    }

    fn sequence(&mut self, path: &str) -> Result<Vec<Node>, Stop> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(items);
            }
            items.push(self.node(event, span, &format!("{path}[{}]", items.len()))?);
        }
    }

    fn mapping(&mut self, path: &str) -> Result<Vec<(Key, Node)>, Stop> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut places: HashMap<String, Pos> = HashMap::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let (at, key, is_merge) = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, style, 0, None) => {
                    let is_merge = text == "<<" && style == ScalarStyle::Plain;
                    (pos(&span.start), text.into_owned(), is_merge)
                }
                _ => {
                    return self.stop(
                        pos(&span.start),
                        path,
                        "a key has to be a plain string, without anchor, alias and tag",
                    );
                }
            };
            let (event, span) = self.next()?;
            let inner = key_path(path, &key);
            let mut node = self.node(event, span, &inner)?;
            // Nothing has no place of its own: what is missing is missing at its key.
            if matches!(node.value, Value::Null) {
                node.at = at;
            }
            self.charge(at, path, 0, key.len())?;
            if is_merge {
                self.merge(node, &inner, &mut merged);
            } else if let Some(first) = places.get(&key) {
                self.report.error(at, &inner, format!("is given twice; first on line {}", first.line));
            } else {
                places.insert(key.clone(), at);
                entries.push((Key { at, text: key }, node));
            }
        }
        // A mapping's own keys win over merged ones, an earlier merge over a later.
        for (key, node) in merged {
            if !places.contains_key(&key.text) {
                places.insert(key.text.clone(), key.at);
                entries.push((key, node));
            }
        }
        Ok(entries)
    }

    fn merge(&mut self, node: Node, path: &str, into: &mut Vec<(Key, Node)>) {
        let sources = match node.value {
            Value::Seq(items) => items,
            value => vec![Node { at: node.at, value }],
        };
        for source in sources {
            match source.value {
                Value::Map(entries) => into.extend(entries),
                Value::Broken => {}
                _ => self.report.error(source.at, path, "`<<` takes a mapping or a list of mappings"),
            }
        }
    }
}

/// How many levels are below `node`.
fn height(node: &Node) -> usize {
    match &node.value {
        Value::Seq(items) => 1 + items.iter().map(height).max().unwrap_or(0),
        Value::Map(entries) => 1 + entries.iter().map(|(_, node)| height(node)).max().unwrap_or(0),
        _ => 0,
    }
}
