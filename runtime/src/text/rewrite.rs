//! Passes every place where a template makes a value through the functions of [`super::guard`]: operators, slices, literals, calls and
//! filters become calls of filters whose names no template can spell, and raw text is emitted as a constant.
//!
//! The engine counts instructions, not bytes, and offers no other way to see what an operator makes.

use minijinja::Value;
use minijinja::machinery::Span;
use minijinja::machinery::ast::{self, CallArg, Expr, Spanned, Stmt};

/// Names of the guards; `guard::install` registers them.
pub(super) mod names {
    pub const ADD: &str = "+";
    pub const MULTIPLY: &str = "*";
    pub const CONCAT: &str = "~";
    pub const SLICE: &str = "[:]";
    pub const FILTER: &str = "|";
    pub const RESULT: &str = "()";
    pub const FIELD: &str = ".=";
}

fn at<T>(span: Span, node: T) -> Spanned<T> {
    Spanned::new(node, span)
}

fn constant<'a>(span: Span, value: Value) -> Expr<'a> {
    Expr::Const(at(span, ast::Const { value }))
}

/// `subject` through the guard `name`.
fn guard<'a>(span: Span, name: &'static str, subject: Option<Expr<'a>>, args: Vec<CallArg<'a>>) -> Expr<'a> {
    Expr::Filter(at(span, ast::Filter { name, expr: subject, args }))
}

/// The template `statement` with guards.
pub(super) fn guarded<'a>(statement: &Stmt<'a>) -> Stmt<'a> {
    match statement {
        Stmt::Template(s) => Stmt::Template(at(s.span(), ast::Template { children: body(&s.children) })),
        Stmt::EmitExpr(s) => {
            // What a call returns is weighed when it is emitted, and the engine knows some calls by their place here.
            let expr = match &s.expr {
                Expr::Call(c) => Expr::Call(call(c)),
                other => expr(other),
            };
            Stmt::EmitExpr(at(s.span(), ast::EmitExpr { expr }))
        }
        Stmt::EmitRaw(s) => {
            let text = constant(s.span(), Value::from_safe_string(s.raw.to_owned()));
            Stmt::EmitExpr(at(s.span(), ast::EmitExpr { expr: text }))
        }
        Stmt::ForLoop(s) => Stmt::ForLoop(at(
            s.span(),
            ast::ForLoop {
                target: target(&s.target),
                iter: expr(&s.iter),
                filter_expr: s.filter_expr.as_ref().map(expr),
                recursive: s.recursive,
                body: body(&s.body),
                else_body: body(&s.else_body),
            },
        )),
        Stmt::IfCond(s) => Stmt::IfCond(at(
            s.span(),
            ast::IfCond { expr: expr(&s.expr), true_body: body(&s.true_body), false_body: body(&s.false_body) },
        )),
        Stmt::WithBlock(s) => {
            let assignments = s.assignments.iter().map(|(name, value)| (target(name), expr(value))).collect();
            Stmt::WithBlock(at(s.span(), ast::WithBlock { assignments, body: body(&s.body) }))
        }
        Stmt::Set(s) => {
            let value = expr(&s.expr);
            let value = match &s.target {
                Expr::GetAttr(_) => guard(s.span(), names::FIELD, Some(value), Vec::new()),
                _ => value,
            };
            Stmt::Set(at(s.span(), ast::Set { target: target(&s.target), expr: value }))
        }
        Stmt::SetBlock(s) => Stmt::SetBlock(at(
            s.span(),
            ast::SetBlock { target: target(&s.target), filter: s.filter.as_ref().map(expr), body: body(&s.body) },
        )),
        Stmt::AutoEscape(s) => {
            Stmt::AutoEscape(at(s.span(), ast::AutoEscape { enabled: expr(&s.enabled), body: body(&s.body) }))
        }
        Stmt::FilterBlock(s) => {
            Stmt::FilterBlock(at(s.span(), ast::FilterBlock { filter: expr(&s.filter), body: body(&s.body) }))
        }
        Stmt::Block(s) => {
            Stmt::Block(at(s.span(), ast::Block { name: s.name, required: s.required, body: body(&s.body) }))
        }
        Stmt::Import(s) => Stmt::Import(at(s.span(), ast::Import { expr: expr(&s.expr), name: target(&s.name) })),
        Stmt::FromImport(s) => {
            let names = s.names.iter().map(|(name, alias)| (target(name), alias.as_ref().map(target))).collect();
            Stmt::FromImport(at(s.span(), ast::FromImport { expr: expr(&s.expr), names }))
        }
        Stmt::Extends(s) => Stmt::Extends(at(s.span(), ast::Extends { name: expr(&s.name) })),
        Stmt::Include(s) => {
            Stmt::Include(at(s.span(), ast::Include { name: expr(&s.name), ignore_missing: s.ignore_missing }))
        }
        Stmt::Macro(s) => Stmt::Macro(macro_of(s)),
        Stmt::CallBlock(s) => {
            Stmt::CallBlock(at(s.span(), ast::CallBlock { call: call(&s.call), macro_decl: macro_of(&s.macro_decl) }))
        }
        Stmt::Continue(s) => Stmt::Continue(at(s.span(), ast::Continue)),
        Stmt::Break(s) => Stmt::Break(at(s.span(), ast::Break)),
        Stmt::Do(s) => Stmt::Do(at(s.span(), ast::Do { call: call(&s.call) })),
    }
}

fn body<'a>(statements: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
    statements.iter().map(guarded).collect()
}

fn macro_of<'a>(m: &Spanned<ast::Macro<'a>>) -> Spanned<ast::Macro<'a>> {
    let (args, defaults) = (m.args.iter().map(target).collect(), m.defaults.iter().map(expr).collect());
    at(m.span(), ast::Macro { name: m.name, args, defaults, body: body(&m.body) })
}

fn call<'a>(c: &Spanned<ast::Call<'a>>) -> Spanned<ast::Call<'a>> {
    at(c.span(), ast::Call { expr: expr(&c.expr), args: c.args.iter().map(arg).collect() })
}

fn arg<'a>(a: &CallArg<'a>) -> CallArg<'a> {
    match a {
        CallArg::Pos(e) => CallArg::Pos(expr(e)),
        CallArg::Kwarg(name, e) => CallArg::Kwarg(name, expr(e)),
        CallArg::PosSplat(e) => CallArg::PosSplat(expr(e)),
        CallArg::KwargSplat(e) => CallArg::KwargSplat(expr(e)),
    }
}

/// What is assigned to: names, lists of them and attributes stay as they are.
fn target<'a>(e: &Expr<'a>) -> Expr<'a> {
    match e {
        Expr::List(l) => Expr::List(at(l.span(), ast::List { items: l.items.iter().map(target).collect() })),
        other => expr(other),
    }
}

fn expr<'a>(e: &Expr<'a>) -> Expr<'a> {
    let span = e.span();
    match e {
        Expr::Var(v) => Expr::Var(at(span, ast::Var { id: v.id })),
        Expr::Const(c) => constant(span, c.value.clone()),
        Expr::Slice(s) => {
            let bound =
                |e: &Option<Expr<'a>>| CallArg::Pos(e.as_ref().map_or_else(|| constant(span, Value::from(())), expr));
            let args = vec![bound(&s.start), bound(&s.stop), bound(&s.step)];
            guard(span, names::SLICE, Some(expr(&s.expr)), args)
        }
        Expr::UnaryOp(u) => {
            // It is no `Copy`.
            let not = matches!(u.op, ast::UnaryOpKind::Not);
            let op = if not { ast::UnaryOpKind::Not } else { ast::UnaryOpKind::Neg };
            Expr::UnaryOp(at(span, ast::UnaryOp { op, expr: expr(&u.expr) }))
        }
        Expr::BinOp(b) => {
            let (left, right) = (expr(&b.left), expr(&b.right));
            let name = match b.op {
                ast::BinOpKind::Add => names::ADD,
                ast::BinOpKind::Mul => names::MULTIPLY,
                ast::BinOpKind::Concat => names::CONCAT,
                op => return Expr::BinOp(at(span, ast::BinOp { op, left, right })),
            };
            guard(span, name, Some(left), vec![CallArg::Pos(right)])
        }
        Expr::Compare(c) => {
            let ops = c.ops.iter().map(|o| ast::CompareOp { op: o.op, expr: expr(&o.expr) }).collect();
            Expr::Compare(at(span, ast::Compare { expr: expr(&c.expr), ops }))
        }
        Expr::IfExpr(i) => Expr::IfExpr(at(
            span,
            ast::IfExpr {
                test_expr: expr(&i.test_expr),
                true_expr: expr(&i.true_expr),
                false_expr: i.false_expr.as_ref().map(expr),
            },
        )),
        Expr::Filter(f) => {
            let name = CallArg::Pos(constant(span, Value::from(f.name)));
            let args = std::iter::once(name).chain(f.args.iter().map(arg)).collect();
            guard(span, names::FILTER, f.expr.as_ref().map(expr), args)
        }
        Expr::Test(t) => {
            let args = t.args.iter().map(arg).collect();
            Expr::Test(at(span, ast::Test { name: t.name, expr: expr(&t.expr), args }))
        }
        Expr::GetAttr(g) => Expr::GetAttr(at(span, ast::GetAttr { expr: expr(&g.expr), name: g.name })),
        Expr::GetItem(g) => {
            let item = ast::GetItem { expr: expr(&g.expr), subscript_expr: expr(&g.subscript_expr) };
            Expr::GetItem(at(span, item))
        }
        Expr::Call(c) => guard(span, names::RESULT, Some(Expr::Call(call(c))), Vec::new()),
        Expr::List(l) => {
            let list = ast::List { items: l.items.iter().map(expr).collect() };
            guard(span, names::RESULT, Some(Expr::List(at(span, list))), Vec::new())
        }
        Expr::Map(m) => {
            let map = ast::Map { keys: m.keys.iter().map(expr).collect(), values: m.values.iter().map(expr).collect() };
            guard(span, names::RESULT, Some(Expr::Map(at(span, map))), Vec::new())
        }
    }
}
