package millrace.oracle;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;

/**
 * The functions of a case: terms joined by " + ", each of key, value, aggregate (or old), one of
 * these modulo a number, or a 'literal'. One term that is a name is the thing itself, everything
 * else is text. Behind " unless " is a condition, for which the result is null.
 */
interface Expression {
  Object apply(Object key, Object value, Object aggregate);

  static Expression parse(String text) {
    if (text.equals("aggregate with every occurrence of value removed")) {
      return (k, v, a) -> Json.text(a).replace(Json.text(v), "");
    }
    int unless = text.indexOf(" unless ");
    if (unless >= 0) {
      Expression then = parse(text.substring(0, unless));
      Condition not = Condition.parse(text.substring(unless + " unless ".length()));
      return (k, v, a) -> not.test(k, v, a) ? null : then.apply(k, v, a);
    }
    List<Expression> terms = new ArrayList<>();
    for (String term : text.trim().split(" \\+ ")) {
      terms.add(term(term));
    }
    if (terms.size() == 1) {
      return terms.get(0);
    }
    return (k, v, a) -> {
      StringBuilder out = new StringBuilder();
      for (Expression term : terms) {
        out.append(Json.text(term.apply(k, v, a)));
      }
      return out.toString();
    };
  }

  private static Expression term(String term) {
    if (term.length() >= 2 && term.startsWith("'") && term.endsWith("'")) {
      String literal = term.substring(1, term.length() - 1);
      return (k, v, a) -> literal;
    }
    int percent = term.indexOf(" % ");
    if (percent >= 0) {
      Expression of = term(term.substring(0, percent));
      long n = Long.parseLong(term.substring(percent + 3));
      return (k, v, a) -> Long.toString(checksum(Json.text(of.apply(k, v, a))) % n);
    }
    return switch (term) {
      case "key" -> (k, v, a) -> k;
      case "value" -> (k, v, a) -> v;
      case "aggregate", "old" -> (k, v, a) -> a;
      default -> throw new IllegalArgumentException("expression " + term);
    };
  }

  private static long checksum(String text) {
    long sum = 0;
    for (byte b : text.getBytes(StandardCharsets.UTF_8)) {
      sum = (sum * 31 + (b & 0xff)) % 1_000_003;
    }
    return sum;
  }

  /** Compares two expressions: "value % 3 == '1'". */
  interface Condition {
    boolean test(Object key, Object value, Object aggregate);

    static Condition parse(String text) {
      String[] sides = text.split(" == ");
      if (sides.length != 2) {
        throw new IllegalArgumentException("condition " + text);
      }
      Expression left = Expression.parse(sides[0]);
      Expression right = Expression.parse(sides[1]);
      return (k, v, a) -> Json.text(left.apply(k, v, a)).equals(Json.text(right.apply(k, v, a)));
    }
  }
}
