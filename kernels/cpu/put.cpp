#include <cstring>

#include "calls.h"

void run(const Put& a) {
    const long *from = a.from_stride, *to = a.to_stride;
    for (int b = 0; b < a.batch; b++)
        for (int h = 0; h < a.heads; h++)
            for (int l = 0; l < a.length; l++)
                std::memcpy(a.to + b * to[0] + h * to[1] + (a.at + l) * to[2],
                            a.from + b * from[0] + h * from[1] + l * from[2], a.row);
}
