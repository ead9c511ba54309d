# The lab's guest operating system: one boot sector that keeps a journal on its
# own disk and notices a second copy of itself. All numbers are little-endian.
#
#   sector 0      this code
#   sector 1      header: "VMHB" nonce seq conflicts boots, and from byte 64 on
#                 a ring of 64 nonces, one for each boot that ever wrote
#   sector 2+n    journal: "VMHJ" nonce seq ticks, where n = seq mod 8192
#
# Each boot draws a nonce. Before each write the guest reads the header again: a
# nonce that is not its own, after it wrote once, means that somebody else is
# writing to this disk, and it counts a conflict.
#
# PERIOD is the time between writes in BIOS ticks of 55 ms.

    .code16
    .ifndef PERIOD
    .set PERIOD, 2
    .endif

    .set BIOS_TICKS, 0x046c
    .set PM1_STATUS, 0x0600        # the port SeaBIOS gives to ACPI on machine "pc"
    .set PM1_ENABLE, 0x0602
    .set PM1_CONTROL, 0x0604
    .set POWER_BUTTON, 0x0100
    .set SOFT_OFF, 0x2000

    .set nonce, 0x0500             # variables
    .set slot, 0x0504              # of this boot in the ring of writers, in bytes
    .set header, 0x8000            # one sector each
    .set entry, 0x8200

    .set h_magic, header
    .set h_nonce, header+4
    .set h_seq, header+8
    .set h_conflicts, header+12
    .set h_boots, header+16
    .set h_writers, header+64

    .globl _start
_start:
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    cli
    movw %ax, %ss
    movw $0x7c00, %sp
    sti
    cld
    movb %dl, drive

    # The time stamp counter differs between any two starts in practice; the
    # clock's seconds and the tick counter are added for good measure.
    rdtsc
    movl %eax, %ebx
    xorb %al, %al
    outb %al, $0x70
    inb $0x71, %al
    shll $24, %eax
    xorl %eax, %ebx
    xorl BIOS_TICKS, %ebx
    movl %ebx, nonce

    movw $PM1_ENABLE, %dx
    movw $POWER_BUTTON, %ax
    outw %ax, %dx

    # A disk that does not answer yet is asked until it does.
first_read:
    call read_header
    jc first_read
    jmp write

idle:
    movl BIOS_TICKS, %ebx
    addl $PERIOD, %ebx
tick:
    hlt
    movw $PM1_STATUS, %dx
    inw %dx, %ax
    testw $POWER_BUTTON, %ax
    jnz power_off
    cmpl %ebx, BIOS_TICKS
    jb tick

    call read_header
    jc idle
write:
    cmpb $0, wrote
    je enlist
    movl nonce, %eax
    cmpl %eax, h_nonce
    je listed
    incl h_conflicts

    # A second writer may have put an older list back.
listed:
    movw slot, %bx
    cmpl %eax, h_writers(%bx)
    je own
enlist:
    movl h_boots, %ebx
    incl h_boots
    andw $63, %bx
    shlw $2, %bx
    movw %bx, slot
    movl nonce, %eax
    movl %eax, h_writers(%bx)

    # The sequence goes on from the header, whoever wrote it: so two writers take
    # turns in the journal and do not overwrite each other's entries.
own:
    movl $0x4a484d56, entry        # "VMHJ"
    movl nonce, %eax
    movl %eax, entry+4
    movl %eax, h_nonce
    incl h_seq
    movl h_seq, %eax
    movl %eax, entry+8
    movl BIOS_TICKS, %ebx
    movl %ebx, entry+12
    movl $0x42484d56, h_magic      # "VMHB"

    # The entry first, then the header that makes it count.
    andl $8191, %eax
    addl $2, %eax
    movl %eax, lba
    movw $entry, buffer
    movw $0x4300, %ax
    call transfer
    jc idle
    movw $0x4300, %ax
    call header_io
    jc idle
    movb $1, wrote
    jmp idle

power_off:
    movw $PM1_CONTROL, %dx
    movw $SOFT_OFF, %ax
    outw %ax, %dx
halted:
    hlt
    jmp halted

read_header:
    movw $0x4200, %ax
header_io:
    movl $1, lba
    movw $header, buffer
transfer:
    movw $1, blocks                # the BIOS stores the number done here
    movb drive, %dl
    movw $packet, %si
    int $0x13
    ret

    .align 4
packet: .byte 16, 0                # INT 13h disk address packet
blocks: .word 1
buffer: .word 0, 0
lba:    .long 0, 0
drive:  .byte 0
wrote:  .byte 0

    .org 510
    .word 0xaa55
