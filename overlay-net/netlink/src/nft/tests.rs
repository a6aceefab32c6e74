#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fmt::Write;
use std::time::Duration;

use super::encode::transaction;
use super::*;
use crate::{Namespace, wire};

fn table() -> TableName {
    TableName {
        family: Family::Ipv4,
        name: "t".to_owned(),
    }
}

/// Writes attributes as `type=bytes` and `type{...}` for nests: comparable by eye with nf_tables.h.
fn tree(bytes: &[u8], out: &mut String) {
    let mut rest = bytes;
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let kind = u16::from_ne_bytes([rest[2], rest[3]]);
        let value = &rest[4..length];
        if !out.is_empty() && !out.ends_with('{') {
            out.push(' ');
        }
        if kind & 0x8000 != 0 {
            write!(out, "{}{{", kind & 0x7fff).unwrap();
            tree(value, out);
            out.push('}');
        } else if value.len() > 1
            && value.ends_with(&[0])
            && value[..value.len() - 1].iter().all(u8::is_ascii_graphic)
        {
            write!(out, "{kind}='{}'", wire::text(value)).unwrap();
        } else {
            let hex: String = value.iter().map(|b| format!("{b:02x}")).collect();
            write!(out, "{kind}={hex}").unwrap();
        }
        rest = rest.get(length.div_ceil(4) * 4..).unwrap_or_default();
    }
}

/// The messages of a transaction: `kind/flags tree`.
fn lines(ops: &[Op]) -> Vec<String> {
    let bytes = transaction(&table(), ops, 7).bytes.unwrap();
    wire::messages(&bytes)
        .map(|m| {
            let mut line = String::new();
            tree(&m.payload[4..], &mut line);
            format!("{}/{:x} {line}", m.kind & 0xff, m.flags)
        })
        .collect()
}

/// The expressions of a rule.
fn exprs(exprs: Vec<Expr>) -> Vec<String> {
    let line = lines(&[Op::AddRule(Rule {
        chain: "c".to_owned(),
        exprs,
    })])
    .remove(1);
    let list = line
        .strip_prefix("6/c05 1='t' 2='c' 4{1{")
        .unwrap()
        .strip_suffix("}}")
        .unwrap();
    list.split("} 1{").map(str::to_owned).collect()
}

// Numbers are those of linux/netfilter/nf_tables.h; registers 32-bit from 8; nfnetlink numbers big-endian,
// register contents (masks, marks) as the CPU has them.

#[test]
fn loads_are_encoded_as_the_kernel_reads_them() {
    let got = exprs(vec![
        Expr::Payload {
            base: PayloadBase::Network,
            offset: 16,
            len: 4,
            reg: Reg(0),
        },
        Expr::Payload {
            base: PayloadBase::Transport,
            offset: 2,
            len: 2,
            reg: Reg(2),
        },
        Expr::Meta {
            key: MetaKey::L4Proto,
            reg: Reg(1),
        },
        Expr::SetMark { reg: Reg(3) },
        Expr::Ct {
            key: CtKey::Status,
            reg: Reg(4),
        },
        Expr::FibAddrType {
            flag: FibFlag::Daddr,
            reg: Reg(5),
        },
        Expr::Random {
            modulus: 3,
            offset: 9,
            reg: Reg(15),
        },
        Expr::Immediate {
            reg: Reg(0),
            value: vec![1, 2],
        },
    ]);
    let wanted = [
        "1='payload' 2{1=00000008 2=00000001 3=00000010 4=00000004}",
        "1='payload' 2{1=0000000a 2=00000002 3=00000002 4=00000002}",
        "1='meta' 2{2=00000010 1=00000009}",
        "1='meta' 2{2=00000003 3=0000000b}",
        "1='ct' 2{2=00000002 1=0000000c}",
        "1='fib' 2{1=0000000d 2=00000003 3=00000002}",
        "1='numgen' 2{1=00000017 2=00000003 3=00000001 4=00000009}",
        "1='immediate' 2{1=00000008 2{1=0102}}",
    ];
    assert_eq!(got, wanted);
}

#[test]
fn matches_and_actions_are_encoded_as_the_kernel_reads_them() {
    let set = || "s".to_owned();
    let timeout = Some(Duration::from_secs(3));
    let got = exprs(vec![
        Expr::Bitwise {
            src: Reg(0),
            dst: Reg(1),
            mask: vec![255; 4],
            xor: vec![0; 4],
        },
        Expr::Cmp {
            op: CmpOp::Ne,
            reg: Reg(1),
            value: vec![10, 0, 0, 0],
        },
        Expr::Lookup {
            set: set(),
            key: Reg(0),
            data: Some(Reg(4)),
            invert: false,
        },
        Expr::Lookup {
            set: set(),
            key: Reg(0),
            data: None,
            invert: true,
        },
        Expr::VerdictMap {
            set: set(),
            key: Reg(2),
        },
        Expr::Dynset {
            op: DynsetOp::Update,
            set: set(),
            key: Reg(0),
            data: Some(Reg(4)),
            timeout,
        },
        Expr::Dnat {
            addr: Reg(0),
            port: Some(Reg(1)),
        },
        Expr::Masquerade,
        Expr::Reject(RejectWith::TcpReset),
        Expr::Reject(RejectWith::PortUnreachable),
        Expr::Verdict(Verdict::Goto("x".to_owned())),
        Expr::Verdict(Verdict::Return),
    ]);
    let wanted = [
        "1='bitwise' 2{1=00000008 2=00000009 3=00000004 4{1=ffffffff} 5{1=00000000}}",
        "1='cmp' 2{1=00000009 2=00000001 3{1=0a000000}}",
        "1='lookup' 2{1='s' 2=00000008 3=0000000c 5=00000000}",
        "1='lookup' 2{1='s' 2=00000008 5=00000001}",
        "1='lookup' 2{1='s' 2=0000000a 3=00000000 5=00000000}",
        "1='dynset' 2{1='s' 3=00000001 4=00000008 5=0000000c 6=0000000000000bb8}",
        "1='nat' 2{1=00000001 2=00000002 3=00000008 5=00000009}",
        "1='masq' 2{}",
        "1='reject' 2{1=00000001 2=00}",
        "1='reject' 2{1=00000000 2=03}",
        "1='immediate' 2{1=00000000 2{2{1=fffffffc 2='x'}}}",
        "1='immediate' 2{1=00000000 2{2{1=fffffffb}}}",
    ];
    assert_eq!(got, wanted);
}

#[test]
fn tables_chains_sets_and_elements_are_encoded_as_the_kernel_reads_them() {
    let base = BaseChain {
        kind: ChainKind::Nat,
        hook: HookPoint::Output,
        priority: -100,
    };
    let goto = Data::Verdict(Verdict::Goto("c".to_owned()));
    let got = lines(&[
        Op::AddTable,
        Op::AddChain(Chain {
            name: "c".to_owned(),
            base: Some(base),
        }),
        Op::AddSet(verdict_map()),
        Op::AddElements {
            set: "m".to_owned(),
            elements: vec![element(1, Some(goto))],
        },
        Op::DeleteElements {
            set: "m".to_owned(),
            elements: vec![element(1, Some(Data::Value(vec![9])))],
        },
        Op::FlushChain("c".to_owned()),
        Op::DeleteChain("c".to_owned()),
        Op::DeleteTable,
    ]);
    let wanted = [
        "16/1 ",
        "0/401 1='t'",
        "3/401 1='t' 3='c' 4{1=00000003 2=ffffff9c} 5=00000001 7='nat'",
        "9/401 1='t' 2='m' 3=00000008 4=0000000d 5=00000004 6=ffffff00 7=00000004 10=00000001",
        "12/401 1='t' 2='m' 3{1{1{1=00010000} 2{2{1=fffffffc 2='c'}}}}",
        "14/1 1='t' 2='m' 3{1{1{1=00010000}}}",
        "8/1 1='t' 2='c'",
        "5/1 1='t' 3='c'",
        // Only the last step asks for an acknowledgement.
        "2/5 1='t'",
        "17/1 ",
    ];
    assert_eq!(got, wanted);
}

fn verdict_map() -> Set {
    Set {
        name: "m".to_owned(),
        key_type: datatype::SERVICE,
        key_len: 4,
        data: Some((datatype::VERDICT, 0)),
        flags: SetFlags::default(),
        size: None,
    }
}

fn numbers() -> Set {
    Set {
        name: "n".to_owned(),
        data: Some((datatype::MARK, 4)),
        ..verdict_map()
    }
}

fn element(port: u16, data: Option<Data>) -> Element {
    let [high, low] = port.to_be_bytes();
    Element {
        key: vec![high, low, 0, 0],
        data,
    }
}

fn number(port: u16, value: u32) -> Element {
    element(port, Some(Data::Value(value.to_ne_bytes().to_vec())))
}

fn add(elements: Vec<Element>) -> Op {
    Op::AddElements {
        set: "n".to_owned(),
        elements,
    }
}

fn delete(elements: Vec<Element>) -> Op {
    Op::DeleteElements {
        set: "n".to_owned(),
        elements,
    }
}

/// The kernel in a namespace of its own, and the model: both must pass.
fn both(test: impl Fn(&dyn Nft)) {
    test(&Model::default());
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("half skipped: network namespaces need root");
        return;
    }
    let kernel = Namespace::anonymous()
        .unwrap()
        .run(Kernel::open)
        .unwrap()
        .unwrap();
    test(&kernel);
}

#[test]
fn a_refused_step_undoes_the_whole_transaction_and_is_named() {
    both(|nft| {
        nft.apply(
            &table(),
            &[Op::AddTable, Op::AddSet(numbers()), add(vec![number(1, 1)])],
        )
        .unwrap();
        let before = nft.inventory(&table()).unwrap();
        // The kernel acknowledges the last step although the one before it failed.
        let ops = [
            add(vec![number(2, 2)]),
            Op::DeleteChain("nowhere".to_owned()),
            add(vec![number(3, 3)]),
        ];
        let error = nft.apply(&table(), &ops).unwrap_err();
        assert!(
            error.is_not_found() && error.to_string().contains("nowhere"),
            "{error}"
        );
        assert_eq!(nft.inventory(&table()).unwrap(), before);
    });
}

#[test]
fn a_key_takes_new_data_only_after_it_was_deleted() {
    both(|nft| {
        nft.apply(
            &table(),
            &[Op::AddTable, Op::AddSet(numbers()), add(vec![number(1, 1)])],
        )
        .unwrap();
        nft.apply(&table(), &[add(vec![number(1, 1)])]).unwrap();
        assert!(
            nft.apply(&table(), &[add(vec![number(1, 2)])])
                .unwrap_err()
                .is_exists()
        );
        nft.apply(
            &table(),
            &[delete(vec![number(1, 1)]), add(vec![number(1, 2)])],
        )
        .unwrap();
        assert!(
            nft.apply(&table(), &[delete(vec![number(9, 0)])])
                .unwrap_err()
                .is_not_found()
        );
    });
}

#[test]
fn registers_must_be_loaded_within_the_rule() {
    both(|nft| {
        let chain = Chain {
            name: "c".to_owned(),
            base: None,
        };
        nft.apply(&table(), &[Op::AddTable, Op::AddChain(chain)])
            .unwrap();
        let exprs = vec![Expr::Cmp {
            op: CmpOp::Eq,
            reg: Reg(3),
            value: vec![0; 4],
        }];
        let error = nft
            .apply(
                &table(),
                &[Op::AddRule(Rule {
                    chain: "c".to_owned(),
                    exprs,
                })],
            )
            .unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENODATA));
    });
}

#[test]
fn a_chain_goes_in_the_transaction_that_removes_its_last_reference() {
    both(|nft| {
        let chain = Chain {
            name: "c".to_owned(),
            base: None,
        };
        let goto = vec![element(
            1,
            Some(Data::Verdict(Verdict::Goto("c".to_owned()))),
        )];
        let elements = || (("m").to_owned(), goto.clone());
        let (set, e) = elements();
        let ops = [
            Op::AddTable,
            Op::AddChain(chain),
            Op::AddSet(verdict_map()),
            Op::AddElements { set, elements: e },
        ];
        nft.apply(&table(), &ops).unwrap();
        let busy = nft
            .apply(&table(), &[Op::DeleteChain("c".to_owned())])
            .unwrap_err();
        assert_eq!(busy.errno(), Some(libc::EBUSY));
        let (set, e) = elements();
        nft.apply(
            &table(),
            &[
                Op::DeleteElements { set, elements: e },
                Op::DeleteChain("c".to_owned()),
            ],
        )
        .unwrap();
    });
}

#[test]
fn elements_of_many_messages_arrive_in_one_transaction() {
    both(|nft| {
        let before = nft.generation().unwrap();
        let many: Vec<Element> = (0..20_000).map(|i| number(i, u32::from(i))).collect();
        nft.apply(&table(), &[Op::AddTable, Op::AddSet(numbers()), add(many)])
            .unwrap();
        let inventory = nft.inventory(&table()).unwrap().unwrap();
        assert_eq!(inventory.elements["n"], 20_000);
        assert_eq!(nft.generation().unwrap(), before + 1);
        nft.apply(&table(), &[Op::DeleteTable]).unwrap();
        assert_eq!(nft.inventory(&table()).unwrap(), None);
    });
}
