//! What compiling a component would take, counted before a compiler sees it: a small file can ask for terabytes.
//!
//! Nested components are counted as often as they are instantiated, because the compiler copies them. Within a function,
//! the compiler's memory and time grow with the number of places at which its control flow divides or joins, times the
//! number of values that are kept across each.

use wasmparser::{
    BlockType, ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, CompositeInnerType,
    Encoding, FunctionBody, Instance, Operator, Parser, Payload, TypeRef,
};

use super::error::Fault;
use super::limits::{MAX_BODY_KIB, MAX_CODE_MIB, MAX_FUNCTIONS, MAX_ITEMS, MAX_LOCALS, MAX_PARTS, MAX_TYPE_KIB};
use super::limits::{MAX_DEPTH, MAX_FUNCTION_WORK, MAX_WORK};

/// Number of values that blocks, calls and functions pass at no cost worth counting.
const IN_REGISTERS: u64 = 16;

/// Checks that compiling a component takes no more than the limits allow.
///
/// # Errors
/// [`Fault::Complexity`] with the first count that is above its limit. What cannot be read is left to the compiler, which
/// reads with the same code and says what is wrong.
pub(super) fn check(component: &[u8]) -> Result<(), Fault> {
    let mut counts = Counts::default();
    for payload in Parser::new(0).parse_all(component) {
        match payload.map(|payload| counts.add(payload)) {
            Ok(Ok(())) => {}
            Ok(Err(Stop::Excess(what))) => return Err(Fault::Complexity { what }),
            Ok(Err(Stop::Unreadable)) | Err(_) => return Ok(()),
        }
    }
    Ok(())
}

/// Why counting ends early.
enum Stop {
    /// A count above its limit.
    Excess(String),
    /// Bytes that are no WebAssembly.
    Unreadable,
}

impl From<wasmparser::Error> for Stop {
    fn from(_: wasmparser::Error) -> Self {
        Self::Unreadable
    }
}

/// The counts so far.
#[derive(Default)]
struct Counts {
    /// The component or module that is being read, in those around it.
    scopes: Vec<Scope>,
    n_functions: u64,
    n_items: u64,
    code_bytes: u64,
    type_bytes: u64,
    work: u64,
}

/// A component or a module.
#[derive(Default)]
struct Scope {
    is_module: bool,
    /// Of a component: the number of its parts, those of the components included that it instantiates.
    parts: u64,
    /// Of a component: the parts of each component that it knows; None for one that it gets from elsewhere.
    components: Vec<Option<u64>>,
    /// Of a module: the number of parameters and results of each type.
    arities: Vec<u64>,
    /// Of a module: the index of each function's type, imported functions first.
    functions: Vec<u32>,
    /// Of a module: the number of imported functions, then of those whose body was read.
    n_bodies: usize,
}

impl Scope {
    /// Returns the number of parameters and results of a type; a type that does not exist is the compiler's to report.
    fn arity(&self, index: u32) -> u64 {
        self.arities.get(index as usize).copied().unwrap_or(0)
    }
}

/// Checks a count.
fn within(what: &str, found: u64, limit: u64) -> Result<(), Stop> {
    match found > limit {
        true => Err(Stop::Excess(format!("it has {found} {what}, the limit is {limit}"))),
        false => Ok(()),
    }
}

impl Counts {
    fn add(&mut self, payload: Payload<'_>) -> Result<(), Stop> {
        match payload {
            Payload::Version { encoding, .. } => {
                self.scopes.push(Scope { is_module: encoding == Encoding::Module, ..Scope::default() });
                within("components within each other", self.scopes.len() as u64, MAX_DEPTH)
            }
            Payload::End(_) => {
                let Some(ended) = self.scopes.pop() else { return Ok(()) };
                if let (false, Some(around)) = (ended.is_module, self.scopes.last_mut()) {
                    around.components.push(Some(ended.parts));
                }
                Ok(())
            }
            Payload::CodeSectionEntry(body) => self.function(&body),
            Payload::TypeSection(types) => {
                self.types(types.range().len())?;
                for group in types {
                    for one in group?.into_types() {
                        let arity = match &one.composite_type.inner {
                            CompositeInnerType::Func(function) => function.params().len() + function.results().len(),
                            _ => 0,
                        };
                        self.scope().arities.push(arity as u64);
                    }
                }
                Ok(())
            }
            Payload::ImportSection(imports) => {
                self.items(imports.count())?;
                for import in imports.into_imports() {
                    if let TypeRef::Func(index) | TypeRef::FuncExact(index) = import?.ty {
                        self.items(1)?;
                        self.scope().functions.push(index);
                        self.scope().n_bodies += 1;
                    }
                }
                Ok(())
            }
            Payload::FunctionSection(functions) => {
                self.n_functions += u64::from(functions.count());
                within("functions", self.n_functions, MAX_FUNCTIONS)?;
                for index in functions {
                    self.scope().functions.push(index?);
                }
                Ok(())
            }
            Payload::TableSection(section) => self.items(section.count()),
            Payload::MemorySection(section) => self.items(section.count()),
            Payload::TagSection(section) => self.items(section.count()),
            Payload::GlobalSection(section) => self.items(section.count()),
            Payload::ExportSection(section) => self.items(section.count()),
            Payload::DataSection(section) => self.items(section.count()),
            // Each function that a table gets is one byte or more.
            Payload::ElementSection(section) => self.items(u32::try_from(section.range().len()).unwrap_or(u32::MAX)),
            Payload::CoreTypeSection(types) => self.types(types.range().len()),
            Payload::ComponentTypeSection(types) => {
                self.parts(u64::from(types.count()))?;
                self.types(types.range().len())
            }
            Payload::InstanceSection(instances) => {
                for instance in instances {
                    let n_arguments = match instance? {
                        Instance::Instantiate { args, .. } => args.len(),
                        Instance::FromExports(exports) => exports.len(),
                    };
                    self.parts(1 + n_arguments as u64)?;
                }
                Ok(())
            }
            Payload::ComponentInstanceSection(instances) => {
                for instance in instances {
                    let n_parts = match instance? {
                        ComponentInstance::FromExports(exports) => exports.len() as u64,
                        ComponentInstance::Instantiate { component_index, args } => {
                            let known = self.scope().components.get(component_index as usize).copied();
                            let inside = known.ok_or(Stop::Unreadable)?.ok_or_else(|| {
                                let what = "it instantiates a component that another one passes to it, whose parts \
                                            cannot be counted";
                                Stop::Excess(what.to_owned())
                            })?;
                            inside.saturating_add(args.len() as u64)
                        }
                    };
                    self.parts(n_parts.saturating_add(1))?;
                }
                Ok(())
            }
            Payload::ComponentAliasSection(aliases) => {
                for alias in aliases {
                    self.parts(1)?;
                    let component = match alias? {
                        ComponentAlias::InstanceExport { kind: ComponentExternalKind::Component, .. } => None,
                        ComponentAlias::Outer { kind: ComponentOuterAliasKind::Component, count, index } => {
                            let around = self.scopes.iter().rev().nth(count as usize).ok_or(Stop::Unreadable)?;
                            *around.components.get(index as usize).ok_or(Stop::Unreadable)?
                        }
                        _ => continue,
                    };
                    self.scope().components.push(component);
                }
                Ok(())
            }
            Payload::ComponentImportSection(imports) => {
                for import in imports {
                    self.parts(1)?;
                    if import?.ty.kind() == ComponentExternalKind::Component {
                        self.scope().components.push(None);
                    }
                }
                Ok(())
            }
            Payload::ComponentExportSection(exports) => {
                for export in exports {
                    self.parts(1)?;
                    let export = export?;
                    // An export is a new name of the same component.
                    if export.kind == ComponentExternalKind::Component {
                        let known = self.scope().components.get(export.index as usize).copied();
                        self.scope().components.push(known.ok_or(Stop::Unreadable)?);
                    }
                }
                Ok(())
            }
            Payload::ComponentCanonicalSection(functions) => self.parts(u64::from(functions.count())),
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => self.parts(1),
            _ => Ok(()),
        }
    }

    fn scope(&mut self) -> &mut Scope {
        if self.scopes.is_empty() {
            self.scopes.push(Scope::default());
        }
        self.scopes.last_mut().expect("there is one")
    }

    /// Adds parts of the component that is being read.
    fn parts(&mut self, n: u64) -> Result<(), Stop> {
        let scope = self.scope();
        scope.parts = scope.parts.saturating_add(n);
        match scope.parts > MAX_PARTS {
            true => Err(Stop::Excess(format!(
                "its nested components have more than {MAX_PARTS} parts, each counted as often as it is instantiated"
            ))),
            false => Ok(()),
        }
    }

    fn items(&mut self, n: u32) -> Result<(), Stop> {
        self.n_items += u64::from(n);
        within("imports, exports, globals, tables and their entries", self.n_items, MAX_ITEMS)
    }

    fn types(&mut self, n_bytes: usize) -> Result<(), Stop> {
        self.type_bytes += n_bytes as u64;
        within("bytes of types", self.type_bytes, MAX_TYPE_KIB << 10)
    }

    /// Counts a function's locals and the work of compiling it.
    fn function(&mut self, body: &FunctionBody<'_>) -> Result<(), Stop> {
        let n_bytes = body.range().len() as u64;
        within("bytes in one function", n_bytes, MAX_BODY_KIB << 10)?;
        self.code_bytes += n_bytes;
        within("bytes of code", self.code_bytes, MAX_CODE_MIB << 20)?;
        let scope = self.scope();
        let index = scope.n_bodies;
        scope.n_bodies += 1;
        let own = scope.functions.get(index).map_or(0, |&index| scope.arity(index));
        let mut n_locals = own;
        for local in body.get_locals_reader()? {
            n_locals += u64::from(local?.0);
        }
        within("local variables in one function", n_locals, MAX_LOCALS)?;
        let work = work(body, scope, n_locals, own);
        within("values across the branches of one function", work, MAX_FUNCTION_WORK)?;
        self.work += work;
        within("values across the branches of all functions", self.work, MAX_WORK)
    }
}

/// A block of a function that has not ended.
#[derive(Default)]
struct Block {
    is_loop: bool,
    /// Number of uses of local variables in it, those in blocks within it included: assignments and all uses.
    n_assigned: u64,
    n_used: u64,
}

/// Returns the number of values that a function keeps across its branches: where a block ends, those of the local variables
/// that it assigns; where a loop starts, those that it uses; and what its blocks, branches and calls pass. Where its code
/// cannot be read, so that it cannot be compiled either, counting ends.
fn work(body: &FunctionBody<'_>, scope: &Scope, n_locals: u64, own: u64) -> u64 {
    let Ok(operators) = body.get_operators_reader() else { return 0 };
    let (mut n_places, mut widest, mut work) = (1u64, own.saturating_sub(IN_REGISTERS), 0u64);
    let mut blocks = vec![Block::default()];
    for operator in operators {
        let arity = |kind: &BlockType| match kind {
            BlockType::FuncType(index) => scope.arity(*index),
            _ => 0,
        };
        let Ok(operator) = operator else { break };
        let mut open = |kind: &BlockType, is_loop| {
            widest = widest.max(arity(kind).saturating_sub(IN_REGISTERS));
            n_places += 1;
            blocks.push(Block { is_loop, ..Block::default() });
        };
        match operator {
            Operator::Block { blockty } | Operator::If { blockty } => open(&blockty, false),
            Operator::Loop { blockty } => open(&blockty, true),
            Operator::TryTable { try_table } => {
                open(&try_table.ty, false);
                n_places += try_table.catches.len() as u64;
            }
            Operator::End => {
                let Some(ended) = blocks.pop() else { break };
                work += if ended.is_loop { ended.n_used } else { ended.n_assigned }.min(n_locals);
                if let Some(around) = blocks.last_mut() {
                    around.n_assigned += ended.n_assigned;
                    around.n_used += ended.n_used;
                }
            }
            Operator::LocalSet { .. } | Operator::LocalTee { .. } => {
                if let Some(block) = blocks.last_mut() {
                    block.n_assigned += 1;
                    block.n_used += 1;
                }
            }
            Operator::LocalGet { .. } => {
                if let Some(block) = blocks.last_mut() {
                    block.n_used += 1;
                }
            }
            Operator::BrTable { targets } => n_places += 1 + u64::from(targets.len()),
            Operator::Else
            | Operator::Br { .. }
            | Operator::BrIf { .. }
            | Operator::BrOnNull { .. }
            | Operator::BrOnNonNull { .. }
            | Operator::BrOnCast { .. }
            | Operator::BrOnCastFail { .. }
            | Operator::Return => n_places += 1,
            Operator::Call { function_index } | Operator::ReturnCall { function_index } => {
                let index = scope.functions.get(function_index as usize);
                work += index.map_or(0, |&index| scope.arity(index).saturating_sub(IN_REGISTERS));
            }
            Operator::CallIndirect { type_index, .. }
            | Operator::ReturnCallIndirect { type_index, .. }
            | Operator::CallRef { type_index }
            | Operator::ReturnCallRef { type_index } => work += scope.arity(type_index).saturating_sub(IN_REGISTERS),
            _ => {}
        }
    }
    n_places.saturating_mul(widest).saturating_add(work)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::build::CLIP_SOFTMAX_TEMPLATE;
    use crate::plugin::fit::KMEANS_TEMPLATE;

    fn refused(wat: &str) -> String {
        let bytes = wat::parse_str(wat).expect("it assembles");
        check(&bytes).expect_err("it takes too much").to_string()
    }

    /// Returns 30 components within each other, each instantiated twice; `use_it` is what names one before it is.
    fn laughs(use_it: &str) -> String {
        (0..30).fold("(component $c)".to_owned(), |inner, _| {
            format!("(component $c {inner} {use_it} (instance (instantiate $c)) (instance (instantiate $c)))")
        })
    }

    #[test]
    fn nested_components_count_as_often_as_they_are_instantiated() {
        let parts = "compiling it would take too much memory and time: its nested components have more than 20000 parts, \
                     each counted as often as it is instantiated";
        assert_eq!(refused(&laughs("")), parts);
        // The same, through other names of the component.
        let exported = (0..20).fold("(component $c0)".to_owned(), |inner, i| {
            format!(
                "{inner} (component $c{} (alias outer 1 $c{i} (component $c)) (export $e \"e\" (component $c))
                (instance (instantiate $e)) (instance (instantiate $e)))",
                i + 1
            )
        });
        assert_eq!(refused(&format!("(component {exported})")), parts);
    }

    #[test]
    fn a_component_that_another_one_passes_cannot_be_counted() {
        let twice = "(component (component (import \"c\" (component $c)) (instance (instantiate $c))))";
        assert!(refused(twice).ends_with(
            "it instantiates a component that another one passes to it, whose parts cannot \
                                          be counted"
        ));
        let inside = "(component (component $a (component $b) (export \"b\" (component $b)))
            (instance $i (instantiate $a)) (alias export $i \"b\" (component $c)) (instance (instantiate $c)))";
        assert!(refused(inside).contains("whose parts cannot be counted"));
    }

    #[test]
    fn functions_of_many_locals_and_branches_are_refused() {
        let module = |inside: &str| format!("(component (core module {inside}))");
        let function =
            |n_locals: usize, body: String| module(&format!("(func (local {}) {body})", "i64 ".repeat(n_locals)));
        assert!(
            refused(&function(10_001, String::new()))
                .ends_with("it has 10001 local variables in one function, the limit is 10000")
        );
        let used: String = (0..1000).map(|i| format!("local.get {i} local.set {i} ")).collect();
        let loops = format!("{} {used} {}", "loop ".repeat(2000), "i32.const 1 br_if 0 end ".repeat(2000));
        assert!(
            refused(&function(1000, loops))
                .ends_with("values across the branches of one function, the limit is 1000000")
        );
        // Blocks and calls that pass many values are as expensive as local variables.
        let wide = "i32 ".repeat(1000);
        let many = format!(
            "(type $t (func (param {wide}) (result {wide}))) (func (type $t) {} {})",
            "local.get 0 ".repeat(1000),
            "block (type $t) end ".repeat(5000)
        );
        assert!(refused(&module(&many)).contains("values across the branches of one function"));
        let calls = format!(
            "(type $t (func (param {wide}) (result {wide}))) (import \"a\" \"b\" (func $f (type $t))) (func (type $t) {} {})",
            "local.get 0 ".repeat(1000),
            "call $f ".repeat(5000)
        );
        assert!(refused(&module(&calls)).contains("values across the branches of one function"));
        let small = format!("{} {used} {}", "loop ".repeat(900), "end ".repeat(900));
        let small = format!("(func (local {}) {small})", "i64 ".repeat(1000));
        assert!(refused(&module(&small.repeat(20))).contains("values across the branches of all functions"));
    }

    #[test]
    fn functions_types_and_entries_are_counted() {
        let functions = format!("(component (core module {}))", "(func)".repeat(100_001));
        assert!(refused(&functions).ends_with("it has 100001 functions, the limit is 100000"));
        let body = format!("(component (core module (func {})))", "nop ".repeat(1 << 20));
        assert!(refused(&body).contains("bytes in one function, the limit is 1048576"));
        let types =
            format!("(component {})", format!("(type (func (result (tuple {}))))", "u8 ".repeat(3000)).repeat(400));
        assert!(refused(&types).contains("bytes of types, the limit is 1048576"));
        let entries =
            format!("(component (core module (func) (table 1 funcref) (elem func {})))", "0 ".repeat(1_000_001));
        assert!(refused(&entries).contains("tables and their entries, the limit is 1000000"));
        // A component's header, and each as a section (id 4) of the one around it; the text format nests less deep.
        let header = b"\0asm\x0d\0\x01\0";
        let nested = (0..100).fold(header.to_vec(), |inner, _| {
            let mut outer = header.to_vec();
            let component = wasm_encoder::RawSection { id: 4, data: &inner };
            wasm_encoder::ComponentSection::append_to_component(&component, &mut outer);
            outer
        });
        let message = check(&nested).expect_err("it nests too deep").to_string();
        assert!(message.ends_with("it has 101 components within each other, the limit is 100"), "{message}");
    }

    #[test]
    fn plugins_that_ship_take_a_hundredth_of_what_is_allowed() {
        for component in [KMEANS_TEMPLATE, CLIP_SOFTMAX_TEMPLATE] {
            let mut counts = Counts::default();
            let mut most = 0;
            for payload in Parser::new(0).parse_all(component) {
                assert!(counts.add(payload.expect("readable")).is_ok());
                most = counts.scopes.iter().map(|scope| scope.parts).fold(most, u64::max);
            }
            let shares = [
                (most, MAX_PARTS),
                (counts.n_functions, MAX_FUNCTIONS),
                (counts.n_items, MAX_ITEMS),
                (counts.code_bytes, MAX_CODE_MIB << 20),
                (counts.type_bytes, MAX_TYPE_KIB << 10),
                (counts.work, MAX_WORK),
            ];
            assert!(shares.iter().all(|&(found, limit)| found > 0 && found * 100 < limit), "{shares:?}");
        }
    }
}
