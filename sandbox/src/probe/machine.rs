#![allow(unsafe_code)] // guest memory is given to KVM
//! The smallest machine that proves something: one page of 64-bit code, one interrupt.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{kvm_msi, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

const MEMORY: usize = 0x10_000;
/// Page tables (each a page), descriptor tables, code and the top of the stack in guest memory.
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PD: usize = 0x3000;
const GDT: usize = 0x4000;
const IDT: usize = 0x5000;
const CODE: usize = 0x6000;
const HANDLER: usize = 0x6800;
const STACK: u64 = 0x9000;
/// The interrupt that is delivered.
const VECTOR: usize = 0x40;
/// I/O port by which the guest reports.
const PORT: u16 = 0x80;
/// What it reports: the arithmetic came out right, the interrupt came, it did not come.
const RAN: u8 = 1;
const INTERRUPTED: u8 = 2;
const LOST: u8 = 3;

/// `main`: 64-bit and SSE2 arithmetic, which every x86-64 processor has and KVM's instruction emulator lacks (2^40 + 2^40, whose bit 41 must
/// come out), report, let interrupts in, wait for one.
#[rustfmt::skip]
const MAIN: &[u8] = &[
    0x48, 0xb8, 0, 0, 0, 0, 0, 1, 0, 0,             // mov   rax, 1 << 40
    0x66, 0x48, 0x0f, 0x6e, 0xc0,                   // movq  xmm0, rax
    0x66, 0x0f, 0xd4, 0xc0,                         // paddq xmm0, xmm0
    0x66, 0x48, 0x0f, 0x7e, 0xc0,                   // movq  rax, xmm0
    0x48, 0xc1, 0xe8, 0x29,                         // shr   rax, 41       ; 1 = RAN
    0xe6, 0x80,                                     // out   0x80, al
    0xfb,                                           // sti
    0xb9, 0x00, 0x00, 0x00, 0x04,                   // mov   ecx, 1 << 26
    0xf3, 0x90,                                     // pause
    0xff, 0xc9,                                     // dec   ecx
    0x75, 0xfa,                                     // jnz   pause
    0xb0, LOST,                                     // mov   al, LOST
    0xe6, 0x80,                                     // out   0x80, al
    0xf4,                                           // hlt
];
/// Handler of the interrupt.
#[rustfmt::skip]
const ON_INTERRUPT: &[u8] = &[
    0xb0, INTERRUPTED,                              // mov   al, INTERRUPTED
    0xe6, 0x80,                                     // out   0x80, al
    0x48, 0xcf,                                     // iretq
];

/// The machine. Fields drop in order: the VM before its memory.
pub(super) struct Machine {
    vcpu: VcpuFd,
    vm: VmFd,
    _memory: Memory,
}

fn doing(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> String {
    move |error| format!("cannot {what}: {error}")
}

impl Machine {
    /// Builds it.
    pub(super) fn new() -> Result<Self, String> {
        let kvm = Kvm::new().map_err(doing("open it"))?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(format!("it is no KVM device (API version {version})"));
        }
        let vm = kvm.create_vm().map_err(doing("create a VM"))?;
        vm.set_tss_address(0xfffb_d000).map_err(doing("set up a VM"))?;
        vm.create_irq_chip().map_err(doing("create an interrupt controller"))?;
        let memory = Memory::new().map_err(|error| format!("cannot map guest memory: {error}"))?;
        memory.fill();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.0.as_ptr() as u64,
        };
        // SAFETY: the mapping has that size, and outlives the VM (see the order of the fields).
        unsafe { vm.set_user_memory_region(region) }.map_err(doing("give a VM memory"))?;
        let vcpu = vm.create_vcpu(0).map_err(doing("create a vCPU"))?;
        let cpuid =
            kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(doing("ask for CPU features"))?;
        vcpu.set_cpuid2(&cpuid).map_err(doing("set CPU features"))?;
        set_registers(&vcpu).map_err(doing("set a vCPU to 64-bit mode"))?;
        Ok(Self { vcpu, vm, _memory: memory })
    }

    /// Runs it: code first, then an interrupt.
    pub(super) fn run(&mut self, stop: &AtomicBool) -> Result<(), String> {
        let first = self.until_report(stop)?;
        if first != RAN {
            return Err(format!("64-bit guest code computes wrongly ({first})"));
        }
        let msi = kvm_msi { address_lo: 0xfee0_0000, data: VECTOR as u32, ..Default::default() };
        self.vm.signal_msi(msi).map_err(doing("send an interrupt"))?;
        match self.until_report(stop)? {
            INTERRUPTED => Ok(()),
            LOST => Err("an interrupt does not reach guest code".into()),
            other => Err(format!("guest code reports {other} for an interrupt")),
        }
    }

    fn until_report(&mut self, stop: &AtomicBool) -> Result<u8, String> {
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(PORT, [report])) => return Ok(*report),
                Ok(VcpuExit::Intr) => {}
                Ok(exit) => return Err(format!("guest code does not run: {exit:?}")),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(error) => return Err(format!("cannot run guest code: {error}")),
            }
            if stop.load(Ordering::SeqCst) {
                return Err("guest code does not end".into());
            }
        }
    }
}

/// Long mode, flat segments, interrupts off, local APIC on.
fn set_registers(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut system = vcpu.get_sregs()?;
    let data =
        kvm_segment { limit: u32::MAX, selector: 0x10, type_: 3, present: 1, s: 1, db: 1, g: 1, ..Default::default() };
    let code = kvm_segment { selector: 8, type_: 11, db: 0, l: 1, ..data };
    (system.cs, system.ds, system.es, system.fs, system.gs, system.ss) = (code, data, data, data, data, data);
    (system.gdt.base, system.gdt.limit) = (GDT as u64, 3 * 8 - 1);
    (system.idt.base, system.idt.limit) = (IDT as u64, 0xfff);
    system.cr3 = PML4 as u64;
    system.cr4 = 1 << 10 | 1 << 9 | 1 << 5; // OSXMMEXCPT, OSFXSR, PAE
    system.cr0 = 1 << 31 | 1 << 5 | 1 << 4 | 1; // PG, NE, ET, PE
    system.efer = 1 << 10 | 1 << 8; // LMA, LME
    vcpu.set_sregs(&system)?;
    vcpu.set_regs(&kvm_regs { rip: CODE as u64, rsp: STACK, rflags: 2, ..Default::default() })?;
    let mut lapic = vcpu.get_lapic()?;
    lapic.regs[0xf1] = 1; // spurious interrupt vector register, bit 8: the APIC is on
    vcpu.set_lapic(&lapic)
}

/// Guest memory.
struct Memory(NonNull<u8>);

impl Memory {
    fn new() -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            mmap_anonymous(std::ptr::null_mut(), MEMORY, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        NonNull::new(address.cast()).map(Self).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// Page tables (one 2 MiB page at 0), descriptors, code.
    fn fill(&self) {
        self.put(PML4, &(PDPT as u64 | 3).to_le_bytes());
        self.put(PDPT, &(PD as u64 | 3).to_le_bytes());
        self.put(PD, &0x83_u64.to_le_bytes());
        self.put(GDT + 8, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
        self.put(GDT + 16, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
        // Interrupt gate: offset 0..16, selector, present and 64-bit, offset 16..32.
        let gate = (HANDLER as u64 & 0xffff) | 8 << 16 | 0x8e00 << 32;
        self.put(IDT + VECTOR * 16, &gate.to_le_bytes());
        self.put(CODE, MAIN);
        self.put(HANDLER, ON_INTERRUPT);
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= MEMORY);
        // SAFETY: within the mapping, which no vCPU uses yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.as_ptr().add(at), bytes.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this is the mapping of `new`, and nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), MEMORY) };
    }
}
