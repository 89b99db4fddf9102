r"""Writes tests/golden/answers.json: what the package math-verify says of pairs of answers.

    python tools/reference/make_answer_golden.py tests/golden/answers.json

Made with math-verify 0.9.0 (latex2sympy2-extended 1.11.0, sympy 1.14.0). A row is `[kind, reference, answer, verdict]`:

- `formula`: the texts of a reference and of an answer tag. math-verify does not read tags, so it is given the reference
  between dollar signs and the answer in a box between dollar signs.
- `text`: a dataset's solution and a whole completion, as they are.
- `letter`: as `text`, with `StringExtractionConfig` (the letters A to D) alone.

`verdict` is `verify(parse(reference), parse(answer))`: true, false, or null where it ran into its time-out.
"""

import json
import logging
import sys
import time

from math_verify import StringExtractionConfig, parse, verify

# One line: a reference, then answers to it, right and wrong ones.
FORMULAS = r"""
3 | 3 | 4 | 03 | 3.0 | 3. | -3 | +3 | 33 | 0.3 | 6/2 | \frac{6}{2} | \frac62 | 1+2 | 3 items | {3} | (3) | 2\cdot 1.5
7 | 7 | 7.0 | 007 | seven | 7/1 | 7! | 17 | 70 | 7\text{ cubes} | 7, 8 | 7 or 8 | 7x | 7^1 | \sqrt{49}
10 | 10 | 10.0 | 1e1 | 100 | 5+5 | 2\times5 | 2*5 | 2·5 | 2×5 | 20/2 | 20\div2 | 3^2+1 | 1.0 | 01.0
0 | 0 | 0.0 | -0 | 1-1 | 0.0000001 | \sin 0 | 0/5 | 1 | 0x
-5 | -5 | −5 | 5 | (-5) | -(5) | --5 | -5.0 | -\frac{10}{2} | \frac{-10}{2} | \frac{10}{-2} | 5-10 | |-5|
1000 | 1,000 | 1000.0 | 10^3 | 1{,}000 | 1\,000 | 100 | 10,00 | 1,000.0 | 1.000 | 1000.5 | 10^{3} | 10^{4}
1234567 | 1,234,567 | 1234567 | 1,234567 | 1{,}234{,}567 | 1234568
1,000 | 1000 | 1,000 | 1 | 10^3
0.5 | 0.5 | .5 | 0.50 | 1/2 | \frac{1}{2} | \frac12 | \dfrac{1}{2} | \tfrac12 | 50\% | 50% | 5/10 | 2^{-1} | 0.05 | 5 | \frac{2}{1} | 0.5000001 | 0.500001 | 1-0.5
2.5 | 2.5 | 2.50 | 5/2 | \frac{5}{2} | 2\frac{1}{2} | 25/10 | 2.05 | 25 | 2\frac12 | 2 \frac{1}{2}
0.25 | \frac{1}{4} | 0.25 | 25\% | \frac{2}{8} | \left(\frac12\right)^2 | \frac{1}{2^2} | 0.024 | 2.5\%
3.14 | 3.14 | \pi | 3.140 | 3.1416 | \frac{22}{7} | \frac{157}{50}
\frac{1}{3} | \frac{1}{3} | 1/3 | 0.333333 | 0.3333333333 | 0.333 | 0.33 | \frac{2}{6} | \frac{-1}{-3} | \frac13 | 3^{-1} | \frac{1}{4} | 33.3333\%
\frac{2}{3} | 0.666667 | 0.666666 | 0.67 | \frac23 | 2/3 | \frac{4}{6} | \frac{3}{2} | 2:3
\frac{3}{5} | 0.6 | 3/5 | \frac35 | 60\% | \frac{5}{3} | \frac{6}{10} | 3 | 5 | \frac{3}{5}\text{ cm} | 0.60
\frac{7}{3} | 2\frac{1}{3} | \frac73 | 7/3 | 2.333333 | 2.33 | 2+\frac13 | \frac{3}{7} | -\frac{7}{3}
-\frac{1}{2} | -0.5 | \frac{-1}{2} | \frac{1}{-2} | -1/2 | 0.5 | -\frac12 | -2
\frac{22}{7} | 22/7 | 3.142857 | \pi | 3.14
\frac{\sqrt{3}}{2} | \frac{\sqrt3}{2} | \sqrt{3}/2 | 0.866025 | 0.8660254 | 0.866 | \frac12\sqrt3 | \frac{3}{2\sqrt3} | \sqrt{\frac34} | \sqrt{3/4} | \frac{\sqrt{3}}{3} | \frac{3}{2} | \sin 60
8\sqrt{3} | 8\sqrt3 | 8\sqrt{3} | 8 \sqrt{3} | 8\cdot\sqrt{3} | \sqrt{192} | 13.856406 | 13.86 | 8 | 3 | 8\sqrt{2} | 4\sqrt{12} | \frac{24}{\sqrt3} | 8\times 3^{0.5} | 8\cdot3^{1/2} | 8*3 | \sqrt{3}\cdot 8 | 8\sqrt{3}\text{ cm}
8√3 | 8\sqrt3 | 8√3 | 8 | 3 | 13.856406
2\sqrt{3} | \sqrt{12} | 2\sqrt3 | \sqrt{3}+\sqrt{3} | 3.464102 | 3.46 | 2\sqrt{2} | 6 | \sqrt{6}
\sqrt{8} | 2\sqrt{2} | 2\sqrt2 | 2.828427 | \sqrt{4}\sqrt{2} | 2^{3/2} | 2^{1.5} | 4 | \sqrt{2}
\sqrt{2}+\sqrt{3} | \sqrt3+\sqrt2 | \sqrt{5+2\sqrt6} | \sqrt{5} | 3.146264 | 3.15
2 | \sqrt{4} | \sqrt[3]{8} | \sqrt2\cdot\sqrt2 | (\sqrt2)^2 | 4^{1/2} | \log_2 4 | \log 100 | \sqrt{2} | 2.0 | 1.999999 | 1.9999999 | |2| | |-2|
\sqrt[3]{2} | 2^{1/3} | 2^{\frac{1}{3}} | 1.259921 | 1.26 | \sqrt{2}
9\pi | 9\pi | 9 \pi | \pi\cdot9 | 28.274334 | 28.27 | 9 | \pi | 9\pi\text{ cm} | 9\pi^2 | 3^2\pi | 9.0\pi | 27
9π | 9\pi | 9π | 9 | π
2400\pi | 2400\pi | 2400\pi\text{ cm}^2 | 2400 | 7539.822369 | 240\pi | 24\cdot100\pi
\frac{\pi}{4} | \pi/4 | 0.785398 | \frac14\pi | 45 | \frac{\pi}{2} | 0.25\pi
\pi | \pi | 3.141593 | 3.14159 | 3.14 | \frac{22}{7} | 180 | 2\pi/2 | π | pi
2\pi r | 2\pi r | 2 r \pi | \pi r^2 | 2\pi R | 2\pi
e | e | 2.718282 | 2.718 | \exp(1) | e^1 | E
e^2 | e^2 | e^{2} | 7.389056 | \exp(2) | 2e
\ln 2 | \ln 2 | \ln(2) | 0.693147 | \log_e 2 | \ln 3 | 0.69
\log_2 8 | 3 | \log_2(8) | \frac{\ln 8}{\ln 2} | 2 | \log_{2}{8}
\log 1000 | 3 | \log_{10} 1000 | \ln 1000
120 | 5! | 120 | 2\cdot60 | 4! | 5\cdot4\cdot3\cdot2
2^{10} | 1024 | 2^{10} | 2^10 | 32^2 | 20 | 4^5 | 1023
10^{-3} | 0.001 | \frac{1}{1000} | 10^{-3} | 1000 | 0.01 | -1000
3\times 10^8 | 300000000 | 3\cdot10^8 | 3\times10^{8} | 3e8 | 3\times 10^7 | 30^8
2^{100} | 1267650600228229401496703205376 | 4^{50} | 2^{100} | 1267650600228229401496703205377 | 2^{99}
123456789012345678901234567890 | 123456789012345678901234567890 | 123456789012345678901234567891
-3^2 | -9 | 9 | (-3)^2
2^{3^2} | 512 | 64 | 2^9
145^\circ | 145^\circ | 145 | 145^{\circ} | 145° | 145\text{ degrees} | 145 degrees | 145.0 | 35 | 145\% | 144^\circ | \angle A = 145^\circ
45° | 45 | 45^\circ | 45° | 45.0° | 90/2 | 54°
30^\circ | 30 | \frac{\pi}{6} | 30^\circ | 60^\circ | 90^\circ-60^\circ
5 | 5\text{ cm} | 5 cm | 5cm | 5\,\text{cm} | 5\mathrm{cm} | 5\text{ meters} | x=5 | x = 5 | 5=x | y=5 | 5.0\text{ kg} | 5x | 5\% | \$5 | 5\text{ apples} | \text{five} | x+1=5 | 2+3=5 | 2+2=5 | 2+3 | 5, | 5;
12\text{ cm} | 12 | 12\text{ cm} | 12cm | 12\text{ m} | 12 m | 12\text{ cm}^2 | 1.2
24\text{ cm}^2 | 24 | 24\text{ cm}^2 | 24 cm^2 | 24cm^{2} | 24\text{ square cm} | 24\mathrm{cm}^2 | 576 | 24\text{ cm}^3
60\text{ km/h} | 60 | 60\text{ km/h} | 60 km/h | 60\text{ mph}
10\% | 10\% | 10% | 0.1 | 10 | \frac{1}{10} | 0.10 | 1\% | 0.01 | 10 percent | 100
50 | 50\% | 50% | 0.5 | 50.0
12.5\% | 12.5% | 0.125 | \frac{1}{8} | 12.5 | 1.25
\$5 | 5 | \$5 | \$5.00 | 5\text{ dollars} | \$50
x | x | X | y | 2x | 1x | x^1 | \frac{x^2}{x} | (x) | x+0
2x | 2x | 2\cdot x | x\cdot2 | x+x | 2*x | 2y | x^2 | 2 | x2
x^2 | x^2 | x\cdot x | x^{2} | x*x | 2x | x² | x^3
x+1 | 1+x | x+1 | (x+1) | x-1 | x+2-1 | \frac{2x+2}{2} | x | 1 | x + 1.0 | -(-x-1)
x^2+2x+1 | (x+1)^2 | 1+2x+x^2 | (x+1)(x+1) | x(x+2)+1 | x^2+2x | (x-1)^2 | (1+x)^2 | x^2+1+2x
(x-1)(x+2) | x^2+x-2 | (x+2)(x-1) | x^2+x+2 | (x-1)(x-2)
\frac{1}{x} | x^{-1} | 1/x | \frac{x}{x^2} | x | -\frac1x | \frac{2}{2x}
\frac{x}{2} | x/2 | 0.5x | \frac12x | \frac12 x | x\cdot\frac12 | \frac{2}{x} | 2x
\frac{1}{2x} | 1/(2x) | 1/2x | \frac{1}{2}x | \frac{0.5}{x} | (2x)^{-1}
\frac{a+b}{2} | (a+b)/2 | \frac{a}{2}+\frac{b}{2} | \frac{b+a}{2} | a+b/2 | a+\frac{b}{2} | \frac{a+b}{c}
a^2-b^2 | (a+b)(a-b) | (a-b)(b+a) | (a-b)^2 | a^2+b^2 | b^2-a^2 | -(b^2-a^2)
\sqrt{x^2+y^2} | (x^2+y^2)^{1/2} | \sqrt{y^2+x^2} | x+y | \sqrt{(x+y)^2-2xy}
x^2+y^2+z^2 | z^2+y^2+x^2 | (x+y+z)^2 | (x+y+z)^2-2xy-2yz-2xz | x^2+y^2
\sin^2 x + \cos^2 x | 1 | 1.0 | 2 | x
\sin 2x | 2\sin x\cos x | \sin(2x) | 2\sin x | \sin x^2
\frac{\sin x}{\cos x} | \tan x | \tan(x) | \cot x
2^x | 2^x | 2^{x} | x^2 | e^{x\ln 2} | 4^{x/2}
e^{x} | e^x | \exp(x) | e x | x^e
|x| | \sqrt{x^2} | |x| | x | -x | |-x|
x^2-1 | (x-1)(x+1) | x^2-1 | \frac{x^3-x}{x} | x^2+1
\frac{x^2-1}{x-1} | x+1 | x-1
n! | n! | n | (n-1)!\cdot n | n^2
(-1)^n | (-1)^n | (-1)^{n+2} | 1 | -1 | (-1)^{n+1}
x_1+x_2 | x_2+x_1 | x_1 + x_2 | x_1-x_2 | 2x
\theta | \theta | \alpha | 2\theta-\theta
\frac{\alpha}{2} | \alpha/2 | \frac12\alpha | \frac{\beta}{2}
2+3i | 3i+2 | 2+3i | 2-3i | 5
x=5 | x=5 | 5 | y=5 | x=6 | x = 5.0 | x=\frac{10}{2} | 2x=10 | x-5=0 | 5=x | x=5\text{ cm}
y=2x+1 | y=2x+1 | 2x+1 | 2x-y+1=0 | y=1+2x | y-1=2x | y=2x-1 | x=\frac{y-1}{2} | 2y=4x+2
2x+3y=6 | 4x+6y=12 | 3y+2x=6 | 2x+3y-6=0 | y=2-\frac{2}{3}x | 2x+3y=7 | 2x-3y=6 | 6 | -2x-3y=-6
x^2+y^2=1 | y^2+x^2=1 | x^2+y^2-1=0 | x^2+y^2=2 | 1-x^2=y^2
f(x)=2x | f(x)=2x | 2x | f(x) = x+x | g(x)=2x | f(x)=3x
x>2 | x>2 | 2<x | x\ge2 | x<2 | x>3 | 2x>4 | (2,\infty) | (2,+\infty) | [2,\infty) | (-\infty,2) | x-2>0 | -x<-2
x\le 3 | x\leq3 | 3\ge x | x≤3 | x<3 | (-\infty,3] | (-\infty,3)
1<x<2 | 1<x<2 | 2>x>1 | (1,2) | [1,2] | 1\le x\le2 | x\in(1,2) | 1<y<2
1\le x<2 | [1,2) | (1,2] | 1\leq x<2 | (1,2)
(1,2) | (1,2) | (1, 2) | \left(1,2\right) | (2,1) | 1,2 | [1,2] | \{1,2\} | (1,2,3) | (1.0,2.0) | 1<x<2 | (\frac{2}{2},2) | 3 | (1;2)
(3,-4) | (3,-4) | ( 3, -4 ) | (-4,3) | (3,4) | x=3,y=-4 | 3,-4
(1,2,3) | (1,2,3) | (1,3,2) | 1,2,3 | [1,2,3] | (1,2) | (1,2,3,4)
(\frac{1}{2},\sqrt{2}) | (0.5,\sqrt2) | (\frac12,\sqrt{2}) | (\sqrt2,\frac12) | (0.5,1.414214)
\{1,2\} | \{1,2\} | \{2,1\} | 1,2 | 2,1 | \{1,2,2\} | \{1,3\} | \{1\} | \{1,2,3\} | (1,2) | (2,1)
\{1,2,3\} | \{3,1,2\} | 1,2,3 | 3,2,1 | \{1,2\} | \left\{1,2,3\right\}
\{\frac{1}{2},3\} | \{3,0.5\} | \{0.5,3\} | \{2,3\} | 3,\frac12
\{5\} | 5 | \{5\} | \{5,5\} | \{6\}
1,2 | 1,2 | 2,1 | 1, 2 | \{1,2\} | (1,2) | 1 | 1,2,3 | 1\text{ and }2 | 1\text{ or }2 | x=1,x=2 | x=1\text{ or }x=2 | 12 | 1.2
1,2,3 | 3,2,1 | 1,2,3 | 1,2 | 1,2,3,4 | 1, 2, and 3
2\text{ and }3 | 2,3 | 3,2 | 2\text{ or }3 | 2 | 5
x=1,y=2 | x=1,y=2 | y=2,x=1 | (1,2) | x=2,y=1 | x=1
[1,2] | [1,2] | (1,2) | [1,2) | [2,1] | [1.0,2] | [1,3]
[1,2) | [1,2) | [1,2] | (1,2] | [1.0,2.0)
(-\infty,3) | (-\infty,3) | (-\infty,3] | (3,\infty) | (-∞,3) | (-inf,3)
(-\infty,1)\cup(2,\infty) | (-\infty,1)\cup(2,\infty) | (2,\infty)\cup(-\infty,1) | (-\infty,1] \cup (2,\infty) | (-\infty,2)\cup(1,\infty) | (-\infty,1)∪(2,\infty)
\pm 3 | \pm3 | 3,-3 | -3,3 | \{3,-3\} | 3 | -3 | ±3
2\pm\sqrt{3} | 2+\sqrt3,2-\sqrt3 | 2-\sqrt3,2+\sqrt3 | 2\pm\sqrt3 | 2+\sqrt{3} | 2\pm\sqrt2
\infty | \infty | +\infty | -\infty | 0 | ∞ | 10^{100}
3:4 | 3:4 | 3/4 | 6:8 | 4:3 | 0.75
\text{yes} | \text{yes} | \text{no} | yes | \text{Yes} | \text{YES} | y
\text{even} | \text{even} | \text{odd} | even
\text{red} | \text{red} | red | \text{blue} | \text{Red} | der
\text{east} | \text{east} | \text{west} | \text{East}
\frac{0}{0} | 0 | 1 | \frac{0}{0}
\frac{1}{0} | \infty | 1 | \frac{1}{0} | 0
3 | \frac{0}{0} | \frac{3}{0} | 0^0 | \frac{3}{1-1}
3 | 5^{5^{5^5}} | 10^{10^{10}} | 2^{-10000000}
3 | | \frac | \frac{ | \sqrt{ | ( | ) | {{{{3 | 3}}}} | \boxed{3} | ^ | 3^ | 3_ | +3+ | 3** | \left( 3 | = | =3 | 3= | ,3 | \\ | % | 3.3.3 | 3..3
"""

TEXTS = r"""
3 | <answer> 3 </answer> | <answer>3</answer> | The answer is 3 | The answer is 3. | Answer: 3 | answer is: 4 | So \boxed{3} | \boxed{4} | I count 3 | I count 4 | 3 and then 4 | 4 and then 3 | The final answer is $3$. I hope it is correct. | $3$ | the answer is **3** | **3** | **Answer:** 3 | There are 3 cubes. | three
<answer> 3 </answer> | <answer> 3 </answer> | <answer>3</answer> | \boxed{3} | 3 | 4 | <answer> 4 </answer>
<answer> 145° </answer> | <answer> 145° </answer> | <answer> 145 </answer> | <answer>145°</answer> | <answer>145</answer> | <answer> 35° </answer> | 145
<think>I count 7</think><answer>5</answer> | 5 | 7
5 | <think>I count 7</think><answer>5</answer> | <think>5 it is </think><answer> 7 </answer> | <think> 7 </think><answer> 5 </answer>
\boxed{5} | \boxed{5} | \boxed{4} and \boxed{5} | \boxed{5} and \boxed{4} | \boxed{5} then 9 | 9 then \boxed{5} | \boxed{ 5 } | \boxed{5.0} | \boxed{{5}} | \boxed{\boxed{5}} | \boxed{5
$\frac{3}{5}$ | the answer is $\frac{3}{5}$ | the answer is $\frac35$. | \boxed{\frac{3}{5}} | $0.6$ | 0.6 | 3/5 | so x = 3/5 | $\frac{5}{3}$ | 60\%
$8\sqrt{3}$ | the answer is $8\sqrt{3}$ | it is $8\sqrt3$ cm | 8 | \boxed{8\sqrt{3}} | $\sqrt{192}$ | it is 3
$9\pi$ | the area is $9\pi$ | the area is 9 | \boxed{9\pi} | 28.27
1000 | 1,000 | 1 000 | about 1,000 in all | 1000.0 | 10 000
0.5 | 1/2 | .5 | 50% | it is 0.5 | it is 0,5 | -0.5
$x=5$ | $x=5$ | x = 5 | so $x = 5$. | $y=5$ | 5
10% | 10% | 0.1 | 10 | 10 percent | ten percent
-3 | -3 | - 3 | 3 | it is -3 | 10-3 | 5 - 8
12 | The area is 12 square units | 12 cm | 3 \times 4 = 12 | 3 * 4 = 12 | = 12 | (12) | 12! | $12 | €12
"""

LETTERS = r"""
A | A | B | (A) | A. | **A** | The answer is A | The answer is B | Answer: A | A. 5 | a | option A | A and B | AB | \boxed{A} | D
C | C | (C) | C) | The answer is (C) | C: 7 | the final answer is C | E | c. | Option C | D, not C
"""


def rows(table):
    for line in table.strip().splitlines():
        # An absolute value needs its strokes: cells are divided by a stroke between spaces.
        reference, *answers = [cell.strip() for cell in f" {line} ".replace("| |", "|  |").split(" | ")]
        for answer in answers:
            yield reference, answer


def verdict(reference, answer, config):
    start = time.monotonic()
    found = bool(verify(parse(reference, **config), parse(answer, **config)))
    return None if not found and time.monotonic() - start > 4 else found


def main(path):
    logging.disable(logging.CRITICAL)
    letters = {"extraction_config": [StringExtractionConfig()]}
    found = []
    for reference, answer in rows(FORMULAS):
        found.append(["formula", reference, answer, verdict(f"${reference}$", f"$\\boxed{{{answer}}}$", {})])
    for reference, answer in rows(TEXTS):
        found.append(["text", reference, answer, verdict(reference, answer, {})])
    for reference, answer in rows(LETTERS):
        found.append(["letter", reference, answer, verdict(reference, answer, letters)])
    with open(path, "w", encoding="utf-8") as file:
        file.write("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in found) + "\n]\n")
    print(len(found), "pairs,", sum(row[3] is True for row in found), "equal")


main(sys.argv[1])
