// The kernels of another processor, called through pipes: see support/emulated.py. A call brings all the memory that it
// reads or writes, and takes it back.
#include "kernels.cpp"

#include <cstdio>
#include <cstdlib>
#include <string>

// What the kernels take of vectors, one value at a time: from (count) to (4, count).
extern "C" int functions_of_vectors(const Real* from, Real* to, int64_t count) {
  for (int64_t i = 0; i < count; i += LANES) {
    int lanes = int(std::min<int64_t>(LANES, count - i));
    Vec x = load_real(from + i, lanes), slope;
    store_real(to + i, softplus(x, slope), lanes);
    store_real(to + count + i, slope, lanes);
    store_real(to + 2 * count + i, silu(x), lanes);
    store_real(to + 3 * count + i, exp2(x, splat(1)), lanes);
  }
  return 0;
}

// In place of torch's. Sums are made in the dtype that is computed in, and rounded once.
static int outside_matmul(const OutsideMatmul* call) {
  for (int64_t i = 0; i < call->M; i++)
    for (int64_t j = 0; j < call->N; j++) {
      Real sum = 0;
      for (int64_t k = 0; k < call->K; k++)
        sum += read(call->left + i * call->left_row + k * call->left_column) *
               read(call->right + k * call->right_row + j * call->right_column);
      store(call->to + i * call->N + j, splat(sum), 1);
    }
  return 1;
}

template <class Result, class... Arguments, size_t... I>
static int64_t apply(Result (*function)(Arguments...), const std::vector<int64_t>& given, std::index_sequence<I...>) {
  return function((Arguments)given.at(I)...);
}

template <class Result, class... Arguments>
static int64_t apply(Result (*function)(Arguments...), const std::vector<int64_t>& given) {
  return apply(function, given, std::index_sequence_for<Arguments...>());
}

static int64_t call(const std::string& name, const std::vector<int64_t>& given) {
#define CALL(function) \
  if (name == #function) return apply(function, given)
  CALL(lanes);
  CALL(functions_of_vectors);
  CALL(call_scans_forward);
  CALL(call_scans_backward);
  CALL(call_conv_forward);
  CALL(call_conv_backward);
  CALL(call_norm_forward);
  CALL(call_norm_backward);
  CALL(call_matmul);
  CALL(space_of_block_forward);
  CALL(space_of_block_backward);
  CALL(call_blocks_forward);
  CALL(call_block_backward);
  std::fprintf(stderr, "there is no %s\n", name.c_str());
  std::exit(1);
}

static void read_bytes(void* to, size_t size) {
  if (size && std::fread(to, 1, size, stdin) != size) std::exit(0);  // nobody calls any more
}

static int64_t read_number() {
  int64_t number;
  read_bytes(&number, sizeof number);
  return number;
}

// With a fence on both sides, over which no kernel may write.
struct Memory {
  static constexpr int64_t FENCE = 256;
  std::vector<char> bytes;
  char* begin;
  int64_t size;

  explicit Memory(int64_t size) : bytes(size + 2 * FENCE + 64, 0x5a), size(size) {
    begin = bytes.data() + FENCE;
    begin += (64 - reinterpret_cast<uintptr_t>(begin) % 64) % 64;  // as torch's
  }
  bool whole() const {
    for (int64_t i = 0; i < FENCE; i++)
      if (begin[-1 - i] != 0x5a || begin[size + i] != 0x5a) return false;
    return true;
  }
};

int main() {
  for (;;) {
    std::string name(read_number(), ' ');
    read_bytes(&name[0], name.size());
    std::vector<Memory> memory;
    for (int64_t count = read_number(); count; count--) {
      memory.emplace_back(read_number());
      read_bytes(memory.back().begin, memory.back().size);
    }
    auto address = [&](int64_t of, int64_t offset) {
      return of < 0 ? reinterpret_cast<int64_t>(&outside_matmul) : reinterpret_cast<int64_t>(memory[of].begin) + offset;
    };
    for (int64_t count = read_number(); count; count--) {
      int64_t field[4];  // where an address stands, and what it is of
      read_bytes(field, sizeof field);
      int64_t value = address(field[2], field[3]);
      std::memcpy(memory[field[0]].begin + field[1], &value, sizeof value);
    }
    std::vector<int64_t> given;
    for (int64_t count = read_number(); count; count--) {
      int64_t of = read_number(), offset = read_number();
      given.push_back(of < 0 ? offset : address(of, offset));
    }
    int64_t result = call(name, given);
    bool whole = true;
    for (const Memory& piece : memory) whole = whole && piece.whole();
    int64_t answer[2] = {result, whole};
    std::fwrite(answer, 1, sizeof answer, stdout);
    for (const Memory& piece : memory) std::fwrite(piece.begin, 1, piece.size, stdout);
    std::fflush(stdout);
  }
}
