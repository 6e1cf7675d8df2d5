"""Texts that somebody may give a run, a cohort, a subject or a note."""

LEAK = "http://127.0.0.1:9"
TEXTS = (
    f"![x]({LEAK}/leak.png)", f"[a]({LEAK}/a)", "[a](javascript:alert(1))", f"<img src={LEAK}/x onerror=alert(1)>",
    "<script>window.pwned=1</script>", "<b>bold</b> &amp; &lt;", f"<{LEAK}/auto>", f"see {LEAK}/page now",
    "www.example.org/x and WWW.EXAMPLE.ORG", "ftp://a.org mailto:a@b.org a@b.org", "$x^2$ and $$y$$ and $5 to $6",
    ":red[x] :blue-background[y] :small[z]", ":material/home: :material_home:", ":joy: :+1: :streamlit:",
    ":blue-badge[b] :rainbow[r] :help[h]", "# heading", "- item", "* item", "+ item", "1. item", "2) item", "> quote",
    "===", "---", "***", "`code` ``two`` ```three```", "*a* **b** _c_ __d__ ~~e~~ ~f~", 
    "a -> b <- c <-> d -- e >= f <= g ~= h", "a-b - c-",
    "|a|b|", "[^1]: note [^1]",
    "[ref]: http://a.org", "\\[escaped\\] \\\\ \\", "x]y[z", "a:small[]b", "::: x",
    ":a{b=c}",
    "test01", "sub-01_T1.nii.gz", "intensity-bright · tiny-intensity", "Ünïcode 脳 🧠", "10:30:45", "C:\\data\\x",
    "[1, 2](http://127.0.0.1:9/x)",
    "![0.5](http://127.0.0.1:9/x.png) :red[0.1] y",
    "[0.1, 0.2] (x) [1]: http://a.org [1]",
    "=cmd()|' /C calc'!A0", "-- x", "- [x] done", "!", "a\nb\n\n# c", "~/x ^y^ {z}", "\u202eabc", "https\\://a.org",
)  # fmt: skip
