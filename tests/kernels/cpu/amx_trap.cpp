// Lets a process run AMX machine code on a processor without AMX: a handler of SIGILL decodes the instruction that the
// processor refused, does on memory what Intel's manual (SDM volume 2) says, and goes on behind it.
//
// Six instructions, all VEX map 0F38, W0, L0: LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED, TDPBF16PS. Whatever
// else comes, or would raise #UD or #GP, ends the process with status 97 and a word on standard error.
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace {

struct Tiles {
    std::atomic<long> thread;
    bool configured;
    int rows[8], bytes[8];
    unsigned char data[8][16][64];
};
Tiles all_tiles[64];
std::atomic<long> executed[6];

[[noreturn]] void refuse(const char* why) {
    if (write(2, why, strlen(why)) < 0) _exit(98);
    _exit(97);
}
void require(bool condition, const char* why) {
    if (!condition) refuse(why);
}

Tiles& tiles_of_this_thread() {
    const long thread = syscall(SYS_gettid);
    for (Tiles& tiles : all_tiles) {
        long owner = 0;
        if (tiles.thread == thread || tiles.thread.compare_exchange_strong(owner, thread)) return tiles;
    }
    refuse("amx_trap: too many threads\n");
}

// The fields of one instruction; `length` of it behind the address bytes.
struct Decoded {
    int pp, opcode, mod, reg, rm, vvvv, length;
    const unsigned char* base;
    int64_t stride;
};

int64_t general(const ucontext_t* context, int number) {
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return context->uc_mcontext.gregs[order[number]];
}

int32_t read32(const unsigned char* p) {
    int32_t value;
    memcpy(&value, p, 4);
    return value;
}

Decoded decode(const ucontext_t* context) {
    const unsigned char* p = reinterpret_cast<const unsigned char*>(context->uc_mcontext.gregs[REG_RIP]);
    require(p[0] == 0xc4 && (p[1] & 31) == 2 && !(p[2] & 0x84), "amx_trap: no VEX instruction of map 0F38, W0, L0\n");
    const int extend_reg = !(p[1] & 0x80), extend_index = !(p[1] & 0x40), extend_base = !(p[1] & 0x20);
    Decoded d = {};
    d.pp = p[2] & 3;
    d.vvvv = ~(p[2] >> 3) & 15;
    d.opcode = p[3];
    d.mod = p[4] >> 6;
    d.reg = (p[4] >> 3 & 7) | extend_reg << 3;
    d.rm = p[4] & 7;
    d.length = 5;
    if (d.mod == 3) {
        d.rm |= extend_base << 3;
        return d;
    }
    int64_t address = 0;
    bool wide = d.mod == 2;
    if (d.rm == 4) {
        const int scale = p[5] >> 6, index = (p[5] >> 3 & 7) | extend_index << 3, base = p[5] & 7;
        d.length = 6;
        if (index != 4) d.stride = int64_t(uint64_t(general(context, index)) << scale);
        if (base == 5 && d.mod == 0) wide = true;
        else address = general(context, base | extend_base << 3);
    } else if (d.rm == 5 && d.mod == 0) {
        wide = true;
        address = reinterpret_cast<int64_t>(p) + d.length + 4;
    } else {
        address = general(context, d.rm | extend_base << 3);
    }
    if (wide) address += read32(p + d.length), d.length += 4;
    else if (d.mod == 1) address += int8_t(p[d.length]), d.length += 1;
    d.base = reinterpret_cast<const unsigned char*>(address);
    return d;
}

void configure(Tiles& tiles, const unsigned char* config) {
    require(config[0] == 1, "amx_trap: palette is not 1\n");
    for (int i = 1; i < 16; i++) require(!config[i], "amx_trap: start_row or a reserved byte is set\n");
    for (int i = 32; i < 48; i++) require(!config[i], "amx_trap: columns of a tile beyond the eighth\n");
    for (int i = 56; i < 64; i++) require(!config[i], "amx_trap: rows of a tile beyond the eighth\n");
    memset(tiles.data, 0, sizeof tiles.data);
    tiles.configured = true;
    for (int t = 0; t < 8; t++) {
        tiles.bytes[t] = config[16 + 2 * t] | config[17 + 2 * t] << 8;
        tiles.rows[t] = config[48 + t];
        require(tiles.bytes[t] <= 64 && tiles.rows[t] <= 16, "amx_trap: a tile larger than the palette's\n");
        require((tiles.bytes[t] == 0) == (tiles.rows[t] == 0), "amx_trap: rows without columns\n");
    }
}

void usable(const Tiles& tiles, int tile) {
    require(tiles.configured, "amx_trap: tiles used before they were configured\n");
    require(tile < 8 && tiles.rows[tile], "amx_trap: an unconfigured tile\n");
}

float widen(const unsigned char* p) {
    const uint32_t bits = uint32_t(p[0]) << 16 | uint32_t(p[1]) << 24;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

void multiply(Tiles& tiles, int c, int a, int b) {
    for (int tile : {c, a, b}) usable(tiles, tile);
    require(c != a && c != b && a != b, "amx_trap: a tile twice in one product\n");
    require(tiles.rows[c] == tiles.rows[a] && tiles.bytes[c] == tiles.bytes[b], "amx_trap: C does not match A and B\n");
    require(tiles.bytes[a] == 4 * tiles.rows[b], "amx_trap: A does not match B\n");
    for (int m = 0; m < tiles.rows[c]; m++)
        for (int n = 0; n < tiles.bytes[c] / 4; n++) {
            float even = 0.0f, odd = 0.0f, sum;
            for (int k = 0; k < tiles.rows[b]; k++) {
                const unsigned char *left = tiles.data[a][m] + 4 * k, *right = tiles.data[b][k] + 4 * n;
                even = fmaf(widen(left), widen(right), even);
                odd = fmaf(widen(left + 2), widen(right + 2), odd);
            }
            memcpy(&sum, tiles.data[c][m] + 4 * n, 4);
            sum += even + odd;
            memcpy(tiles.data[c][m] + 4 * n, &sum, 4);
        }
}

enum Counter { CONFIGURE, RELEASE, ZERO, LOAD, STORE, MULTIPLY };

void execute(Tiles& tiles, const Decoded& d) {
    const bool memory = d.mod != 3;
    if (d.opcode == 0x49 && d.pp == 0 && memory && d.reg == 0) {
        configure(tiles, d.base);
        executed[CONFIGURE]++;
    } else if (d.opcode == 0x49 && d.pp == 0 && d.reg == 0 && d.rm == 0) {
        tiles.configured = false;
        executed[RELEASE]++;
    } else if (d.opcode == 0x49 && d.pp == 3 && !memory && d.rm == 0) {
        usable(tiles, d.reg);
        memset(tiles.data[d.reg], 0, sizeof tiles.data[0]);
        executed[ZERO]++;
    } else if (d.opcode == 0x4b && d.pp == 3 && memory && d.rm == 4) {
        usable(tiles, d.reg);
        memset(tiles.data[d.reg], 0, sizeof tiles.data[0]);
        for (int row = 0; row < tiles.rows[d.reg]; row++)
            memcpy(tiles.data[d.reg][row], d.base + row * d.stride, size_t(tiles.bytes[d.reg]));
        executed[LOAD]++;
    } else if (d.opcode == 0x4b && d.pp == 2 && memory && d.rm == 4) {
        usable(tiles, d.reg);
        unsigned char* to = const_cast<unsigned char*>(d.base);
        for (int row = 0; row < tiles.rows[d.reg]; row++)
            memcpy(to + row * d.stride, tiles.data[d.reg][row], size_t(tiles.bytes[d.reg]));
        executed[STORE]++;
    } else if (d.opcode == 0x5c && d.pp == 2 && !memory) {
        multiply(tiles, d.reg, d.rm, d.vvvv);
        executed[MULTIPLY]++;
    } else {
        refuse("amx_trap: an illegal instruction that is none of the six\n");
    }
}

void on_illegal_instruction(int, siginfo_t*, void* raw) {
    ucontext_t* context = static_cast<ucontext_t*>(raw);
    const Decoded d = decode(context);
    execute(tiles_of_this_thread(), d);
    context->uc_mcontext.gregs[REG_RIP] += d.length;
}

}  // namespace

extern "C" int amx_trap_install() {
    struct sigaction action = {};
    action.sa_sigaction = on_illegal_instruction;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    return sigaction(SIGILL, &action, nullptr);
}

// How often each instruction ran: configure, release, zero, load, store, multiply.
extern "C" long amx_trap_executed(int which) { return executed[which]; }

// Threads that hold a configuration: 0 when every path that configured has released.
extern "C" int amx_trap_configured_threads() {
    int count = 0;
    for (const Tiles& tiles : all_tiles) count += tiles.configured;
    return count;
}
